"""Encoded examples -> one packed row group, a `Batch` of static shape (`virtue_jax/batch.py`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import NamedTuple

import numpy as np

from virtue_jax.batch import QUERY, TARGET, Batch, RowShape
from virtue_jax.data.encoding.encode import EncodedExample, EncodedImage
from virtue_jax.data.encoding.prompts import EncodedPrompt
from virtue_jax.data.packing.layout import PATCHES_PER_TOKEN, check_shape, empty_batch

Row = Sequence[EncodedExample]


class Label(NamedTuple):
    """What an example is to the loss: a query with the contents of the targets it matches, or a target with its own."""

    side: int
    content: int = -1
    positives: tuple[int, ...] = ()

    @classmethod
    def query(cls, *positives: int) -> "Label":
        return cls(QUERY, -1, positives)

    @classmethod
    def target(cls, content: int) -> "Label":
        return cls(TARGET, content)


def row_need(row: Row) -> RowShape:
    """The smallest shape that holds one row, with a vision row for each of its images; images that its examples share
    are counted once. Labels are not counted: `positives` is 1."""
    images = distinct_images(row)
    prompts = [example.prompt for example in row if example.prompt is not None]
    return RowShape(
        slots=sum(len(example) for example in row),
        examples=len(row),
        vision_rows=len(images),
        patches=max((len(image.patches) for image in images.values()), default=0),
        images=len(prompted_images(row)),
        prompts=len(prompts),
        points=max((len(prompt.labels) for prompt in prompts), default=0),
        masks=any(prompt.mask is not None for prompt in prompts),
    )


def row_shape(rows: Sequence[Row], *, slots: int | Sequence[int] = 1, patches: int | Sequence[int] = 4) -> RowShape:
    """The smallest shape that holds every row.

    slots, patches: what these two are rounded up to: a number = its multiples, a sequence = the smallest bucket in it
    that is large enough. Patches must come out a multiple of 4.

    Raises:
        ValueError: no rows; a row larger than the largest bucket, named; patches rounded up to no multiple of 4.
    """
    needs = [row_need(row) for row in rows]
    if not needs:
        raise ValueError("no rows to take a shape from; give at least one")
    most = {field.name: max(getattr(need, field.name) for need in needs) for field in fields(RowShape)}
    for name, steps in (("slots", slots), ("patches", patches)):
        longest = max(range(len(needs)), key=lambda i: getattr(needs[i], name))
        most[name] = _round_up(most[name], steps, name, f"row {longest} ({_origins(rows[longest])})")
    shape = RowShape(**most)
    check_shape(shape)
    return shape


def pack_rows(
    rows: Sequence[Row],
    shape: RowShape,
    *,
    segmentation_tokens: int,
    sam_size: int,
    patch_dim: int = 588,
    pixels: str = "float32",
    labels: Sequence[Sequence[Label]] | None = None,
    vision: Sequence[Mapping[str, int]] | None = None,
    each: Callable = map,
) -> Batch:
    """Packs each row's examples one after another, padding at the right.

    segmentation_tokens, sam_size, patch_dim: of the model (`VirtueConfig`). pixels: dtype of `patches` and
    `sam_images`; "uint8" = grey levels. labels: of each example; without them every example is a query without
    positives (embedding only). vision: {image key: vision row} per row; without it the images go first-fit, in order
    of first use. An image that several examples of a row share (same key) is stored once. `sam_images` holds the
    images that prompts are on. A group whose shape has patches = 0 (prompts = 0) has None from `vision_slot`
    (`prompt_slot`) on; one without masks has no `prompt_masks`. each: a `map` to write pixels with, such as a thread
    pool's.

    Raises:
        ValueError: a row that exceeds a capacity: names row, examples, what overflows, need and capacity; labels that
            are not one per example; an impossible shape; examples encoded for another model.
    """
    check_shape(shape)
    lengths = [len(row) for row in rows]
    if labels is not None and [len(row) for row in labels] != lengths:
        raise ValueError(f"labels: {[len(row) for row in labels]} per row, expected one per example: {lengths}")
    batch = empty_batch(len(rows), shape, sam_size, patch_dim, pixels)
    writes: list[tuple[Callable, np.ndarray]] = []
    for r, row in enumerate(rows):
        _check_capacity(r, row, shape, labels and labels[r])
        for k, label in enumerate(labels[r] if labels is not None else [Label.query()] * len(row)):
            batch.side[r, k], batch.content[r, k] = label.side, label.content
            batch.positives[r, k, : len(label.positives)] = label.positives
        where = first_fit_images(row, shape, r) if vision is None else vision[r]
        writes += _place_row(batch, r, row, where, segmentation_tokens)
    for _ in each(lambda write: write[0](write[1]), writes):
        pass
    return batch


def distinct_images(row: Row) -> dict[str, EncodedImage]:
    """By key, in order of first use; the one with a SAM input wins over one without."""
    images: dict[str, EncodedImage] = {}
    for example in row:
        for image in example.images:
            known = images.setdefault(image.key, image)
            if known.patches.shape != image.patches.shape:
                raise ValueError(
                    f"{example.origin}: image {image.key} has {len(image.patches)} patches, in another example of the "
                    f"row {len(known.patches)}; encode a row's examples with one encoder, from files that do not change"
                )
            if known.sam is None and image.sam is not None:
                images[image.key] = image
    return images


def prompted_images(row: Row) -> list[str]:
    """Keys of the images that prompts are on, in order of first use."""
    return list(dict.fromkeys(example.images[0].key for example in row if example.prompt is not None))


def first_fit_images(row: Row, shape: RowShape, r: int = 0) -> dict[str, int]:
    """{image key: vision row}: each image in the first vision row with room.

    Raises:
        ValueError: they do not fit; names row `r` and its examples.
    """
    free = [shape.patches] * shape.vision_rows
    where = {}
    for key, image in distinct_images(row).items():
        patches = len(image.patches)
        v = next((v for v, room in enumerate(free) if room >= patches), None)
        if v is None:
            raise ValueError(
                f"row {r} ({_origins(row)}) overflows: an image of {patches} patches finds no room in {len(free)} "
                f"vision_rows of {shape.patches} patches; put fewer images into a row or enlarge them"
            )
        free[v] -= patches
        where[key] = v
    return where


def _place_row(batch: Batch, r: int, row: Row, where: Mapping[str, int], segmentation_tokens: int) -> list:
    """Writes everything but pixels; returns what writes these, each with the array to write into."""
    first_token, writes = _place_images(batch, r, row, where) if batch.patches is not None else ({}, [])
    prompted = prompted_images(row)
    if batch.sam_images is not None:
        images = distinct_images(row)
        writes += [(images[key].write_sam, batch.sam_images[r, i]) for i, key in enumerate(prompted)]
    slot = prompts = 0
    for k, example in enumerate(row):
        place = slice(slot, slot + len(example))
        slot = place.stop
        batch.tokens[r, place] = example.tokens
        batch.positions[r, :, place] = example.positions
        batch.segments[r, place] = k + 1
        batch.pool[r, k] = slot - 1
        batch.valid[r, k] = True
        if example.images:
            batch.vision_slot[r, place] = _row_vision(example, first_token)
        if example.prompt is not None:
            batch.prompt_slot[r, place] = _row_segmentation(example, prompts, segmentation_tokens)
            batch.prompt_image[r, prompts] = prompted.index(example.images[0].key)
            _place_prompt(batch, r, prompts, example.prompt)
            prompts += 1
    return writes


def _place_images(batch: Batch, r: int, row: Row, where: Mapping[str, int]) -> tuple[dict[str, int], list]:
    """The row's first vision token of each image, and what writes the patches."""
    vision_rows, capacity, dim = batch.patches.shape[1:]
    used, numbers = [0] * vision_rows, [0] * vision_rows
    first_token, writes = {}, []
    for key, image in distinct_images(row).items():
        if image.patches.shape[1] != dim:
            raise ValueError(
                f"image {key}: patches have {image.patches.shape[1]} values, the model's {dim}; encode with its config"
            )
        v = where[key]
        place = slice(used[v], used[v] + len(image.patches))
        first_token[key] = (v * capacity + used[v]) // PATCHES_PER_TOKEN
        used[v] = place.stop
        numbers[v] += 1
        batch.patch_yx[r, v, place] = image.patch_yx
        batch.patch_segments[r, v, place] = numbers[v]
        writes.append((image.write_patches, batch.patches[r, v, place]))
    return first_token, writes


def _row_vision(example: EncodedExample, first_token: dict[str, int]) -> np.ndarray:
    """int32[n]: the example's vision token indices as indices of the row's vision tokens, -1 where there is none."""
    row_index = np.concatenate([first_token[i.key] + np.arange(i.vision_tokens) for i in example.images])
    return np.where(example.vision >= 0, row_index[example.vision], -1)


def _row_segmentation(example: EncodedExample, m: int, segmentation_tokens: int) -> np.ndarray:
    """int32[n]: the example's segmentation token indices as those of the row's prompt m, -1 where there is none."""
    slots = example.segmentation
    if slots.max() + 1 != segmentation_tokens:
        raise ValueError(
            f"{example.origin}: encoded with {slots.max() + 1} segmentation tokens, not {segmentation_tokens}"
        )
    return np.where(slots >= 0, m * segmentation_tokens + slots, -1)


def _place_prompt(batch: Batch, r: int, m: int, prompt: EncodedPrompt) -> None:
    batch.prompt_points[r, m, : len(prompt.points)] = prompt.points
    batch.prompt_labels[r, m, : len(prompt.labels)] = prompt.labels
    if prompt.mask is not None:
        expected = batch.prompt_masks.shape[2:]
        if prompt.mask.shape != expected:
            raise ValueError(f"mask logits are {prompt.mask.shape}, the model's {expected}; encode with its config")
        batch.has_mask[r, m] = True
        batch.prompt_masks[r, m] = prompt.mask


def _check_capacity(r: int, row: Row, shape: RowShape, labels: Sequence[Label] | None) -> None:
    need = row_need(row)
    wanted = {name: getattr(need, name) for name in _COUNTED}
    wanted["positives"] = max((len(label.positives) for label in labels or ()), default=0)
    over = [
        f"{name}: {n} needed, capacity {getattr(shape, name)}" for name, n in wanted.items() if n > getattr(shape, name)
    ]
    if over:
        raise ValueError(
            f"row {r} ({_origins(row)}) overflows: {'; '.join(over)}; put fewer examples into a row or enlarge it"
        )


# Vision rows are not: several images may share one.
_COUNTED = ("slots", "examples", "patches", "images", "prompts", "points", "masks")


def _round_up(need: int, steps: int | Sequence[int], name: str, where: str) -> int:
    if isinstance(steps, int):
        return -(-need // steps) * steps
    fitting = [bucket for bucket in steps if bucket >= need]
    if not fitting:
        raise ValueError(f"{where}: {need} {name}, more than the largest bucket {max(steps)}; add a larger one")
    return min(fitting)


def _origins(row: Row) -> str:
    names = [example.origin for example in row]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
