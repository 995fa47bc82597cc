"""Writes scenes as the published SCaR is: image files, and parquet in its eval and train schemas."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from virtue_jax.data.formats.parquet import write_rows
from virtue_jax.data.formats.scar_columns import EVAL_SCHEMA, TRAIN_SCHEMA, PointedObject, eval_row, train_row
from virtue_jax.data.scenes.captions import CANDIDATE_TYPES
from virtue_jax.data.scenes.scene import Scene, SceneObject, check_ranges, make_scene
from virtue_jax.data.scenes.vocabulary import Vocabulary

QUERY_TEXT = (
    "<|image_1|>\nFind the caption that best describes the segmented object, "
    "considering both local details and global context in the given image."
)
EVAL_FILE, TRAIN_FILE = "SCaR_eval_scenes.parquet", "SCaR_train_scenes.parquet"
IMAGE_FOLDER = "images"
FIRST_EVAL_INDEX = 1 << 40  # train scenes count from 0: the two never meet, however many there are of either


def write_scenes(
    out_dir: str | os.PathLike,
    *,
    train: int,
    eval: int,
    seed: int,
    width: tuple[int, int] = (640, 640),
    height: tuple[int, int] = (480, 480),
    objects: tuple[int, int] = (3, 6),
    vocabulary: Vocabulary | None = None,
    negatives: int = 9,
    image_format: str = "png",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Writes `train` and `eval` images (every object of an image gives one row) and their two parquet files.

    Layout: `images/scenes_train/000000.png`, `images/scenes_eval/...`, `SCaR_train_scenes.parquet`,
    `SCaR_eval_scenes.parquet`. A parquet file appears under its name only when it and its images are complete.
    A split of 0 images is not written.

    Args:
        seed: with the ranges and the vocabulary, determines everything written.
        width, height, objects, vocabulary: see `make_scene`.
        negatives: how many of the nine distractors a train row holds; they come in turns: scene, relation, object swap.
        image_format: "png", or "jpg" for JPEG at quality 95.
        progress: called with (images done, images in all) after each image.

    Returns:
        Number of rows by split, {"train": ..., "eval": ...}.

    Raises:
        ValueError: counts or ranges out of bounds.
        OSError: the disk is full or out_dir cannot be written.
    """
    words = vocabulary or Vocabulary()
    check_ranges(width, height, objects, words)
    _check_counts(train, eval, negatives, image_format)
    draw = partial(make_scene, seed, width=width, height=height, objects=objects, vocabulary=words)
    rows = {"train": 0, "eval": 0}
    written = _write_splits(Path(out_dir), _splits(train, eval, negatives), draw, image_format)
    for done, (name, count) in enumerate(written, start=1):
        rows[name] += count
        if progress:
            progress(done, train + eval)
    return rows


def _check_counts(train: int, eval: int, negatives: int, image_format: str) -> None:
    if train < 0 or eval < 0 or train + eval == 0:
        raise ValueError(f"train={train}, eval={eval}: expected numbers of images, at least one in all")
    if not 0 <= negatives <= 9 or image_format not in ("png", "jpg"):
        raise ValueError(f"negatives={negatives}, image_format={image_format!r}: expected 0 to 9; 'png' or 'jpg'")


class _Split(NamedTuple):
    name: str
    images: int
    first: int
    file: str
    schema: pa.Schema
    row_of: Callable


def _splits(train: int, eval: int, negatives: int) -> tuple[_Split, _Split]:
    return (
        _Split("train", train, 0, TRAIN_FILE, TRAIN_SCHEMA, partial(_train_row, negatives=negatives)),
        _Split("eval", eval, FIRST_EVAL_INDEX, EVAL_FILE, EVAL_SCHEMA, _eval_row),
    )


def _write_splits(
    root: Path, splits: Sequence[_Split], draw: Callable[[int], Scene], suffix: str
) -> Iterator[tuple[str, int]]:
    """Yields each image's split and number of rows as it is written."""
    root.mkdir(parents=True, exist_ok=True)
    for split in (split for split in splits if split.images):
        (root / split.file).unlink(missing_ok=True)  # its images are about to be written over
        scenes = (draw(split.first + number) for number in range(split.images))
        with write_rows(root / split.file, split.schema) as write:
            for rows in _write_images(root, split.name, scenes, suffix, split.row_of):
                write(rows)
                yield split.name, len(rows)


def _write_images(root: Path, split: str, scenes: Iterator[Scene], suffix: str, row_of: Callable) -> Iterator[list]:
    """Saves each scene's image and yields its rows."""
    folder = root / IMAGE_FOLDER / f"scenes_{split}"
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(scenes):
        path = folder / f"{number:06d}.{suffix}"
        options = {"quality": 95} if suffix == "jpg" else {"compress_level": 4}
        Image.fromarray(scene.image).save(path, **options)
        relative = path.relative_to(root / IMAGE_FOLDER).as_posix()
        yield [row_of(thing, relative, scene.index) for thing in scene.objects]


def _pointed(thing: SceneObject, index: int) -> PointedObject:
    return PointedObject(thing.box, thing.mask, thing.point, thing.description.kind, index)


def _eval_row(thing: SceneObject, path: str, index: int) -> dict:
    return eval_row(QUERY_TEXT, path, _pointed(thing, index), thing.candidates, CANDIDATE_TYPES)


def _train_row(thing: SceneObject, path: str, index: int, negatives: int) -> dict:
    swaps = np.array(thing.candidates[1:], object).reshape(3, 3).T.ravel()[:negatives].tolist()
    return train_row(QUERY_TEXT, path, _pointed(thing, index), thing.caption, swaps)
