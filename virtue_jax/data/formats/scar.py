"""SCaR (Segmentation-and-Scene Caption Retrieval): its published train and eval parquet as pairs and questions.

Rows point at an object by `bbox` (x, y, w, h in the image's own pixels), and may carry a `segmentation` and, in
scenes, a `point`. Texts stay as they are, `<|image_1|>` included: the encoder writes the image's markup there.
"""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from virtue_jax.data.example import IMAGE_MARKER, Example, TrainingPair
from virtue_jax.data.formats.parquet import parquet_files
from virtue_jax.data.formats.scar_columns import EVAL_REQUIRED, TRAIN_REQUIRED
from virtue_jax.data.formats.scar_row import (
    candidate_texts,
    object_box,
    object_mask,
    object_point,
    object_prompt,
)
from virtue_jax.data.formats.table_rows import TableRows, marked_text
from virtue_jax.data.pair_source import PairRows

PROMPT_KINDS = ("box", "point", "mask", "none")


@dataclass(frozen=True)
class ScarQuestion:
    """One row of SCaR-Eval.

    query: with the prompt of the kind asked for. candidates: ten texts, `answer` the index of the true one, `types`
    what sort each is (CANDIDATE_TYPES). box: (x1, y1, x2, y2). point: (x, y) of a pixel inside, where the file has a
    point or masks were asked for. mask: bool[H, W] where masks were asked for. row: number in the whole source.
    """

    query: Example
    candidates: tuple[str, ...]
    types: tuple[str, ...]
    box: tuple[float, float, float, float]
    point: tuple[float, float] | None
    mask: np.ndarray | None
    category: str
    image_id: int
    dataset: str
    row: int
    answer: int = 0

    @property
    def origin(self) -> str:
        return self.query.origin


class _ScarRows(TableRows):
    """What training and evaluation rows share: they point at an object on the query's image."""

    def __init__(self, where, required: Sequence[str], optional: Sequence[str], image_root):
        super().__init__(parquet_files(where, required[0]), required, optional, image_root)

    def box(self, row: int) -> tuple[float, float, float, float]:
        """(x1, y1, x2, y2) of a row's object, without reading the rest of the row."""
        table, number = self.locate(row)
        return object_box(table.column("bbox")[number].as_py(), table.origin(number))


class ScarTraining(_ScarRows, PairRows):
    """SCaR-Train rows as training pairs; no pixel is read unless a mask is asked for.

    Args:
        where: a parquet file, a folder (its files with a train schema), or several of them.
        image_root: folder that image paths are relative to; by default `images` beside the file, or the file's folder.
        prompts: weights of the kinds of prompt that queries carry (PROMPT_KINDS); a row's kind is a function of (seed,
            file name, row). Point prompts come from the `point` column, else from the segmentation.

    Raises:
        InvalidExample: unreadable file, missing column.
        ValueError: unknown prompt kinds or weights.
    """

    def __init__(
        self,
        where: str | os.PathLike | Sequence,
        *,
        image_root: str | os.PathLike | None = None,
        prompts: Mapping[str, float] | None = None,
        seed: int = 0,
    ):
        self.prompts = _checked_weights(prompts or {"box": 1.0})
        self.seed = seed
        pointing = ["point"] if self.prompts.keys() & {"point"} else []
        segmentation = ["segmentation"] if self.prompts.keys() & {"point", "mask"} else []
        super().__init__(where, TRAIN_REQUIRED, ["neg_text", "neg_image_path", *pointing, *segmentation], image_root)

    def pair(self, row: int) -> TrainingPair:
        table, number = self.locate(row)
        values, origin = table[number], table.origin(number)
        image = self.image_path(table, values["qry_image_path"], origin)
        kind = _choose(self.prompts, f"{self.seed}:{table.path.name}:{number}")
        query = Example(
            marked_text(values["qry"], "qry", origin),
            (image,),
            object_prompt(kind, values, image, origin),
            origin,
            False,
        )
        positive = self.side("positive", table, values["pos_text"], values["pos_image_path"], origin)
        return TrainingPair(query, positive, self.negatives(table, values, origin))


class ScarEvaluation(_ScarRows):
    """SCaR-Eval rows as questions of ten candidates; the first is the true one, as published.

    Args:
        where: a parquet file, a folder (its files with an eval schema), or several of them.
        image_root: as `ScarTraining`.
        prompt: kind of prompt on the query (PROMPT_KINDS).
        masks: whether to decode each row's segmentation, for `mask` and, without a `point` column, `point`.
        gap: what stands between the image and the query's text (`Compat.evaluation_gap`).

    Raises:
        InvalidExample: as `ScarTraining`.
    """

    def __init__(
        self,
        where: str | os.PathLike | Sequence,
        *,
        image_root: str | os.PathLike | None = None,
        prompt: str = "box",
        masks: bool = False,
        gap: str = "",
    ):
        self.gap = gap
        self.prompt = next(iter(_checked_weights({prompt: 1.0})))
        self.masks = masks
        segmentation = ["segmentation"] if masks or prompt in ("point", "mask") else []
        super().__init__(where, EVAL_REQUIRED, ["tgt_image_path", "point", *segmentation], image_root)

    def __getitem__(self, row: int) -> ScarQuestion:
        table, number = self.locate(row)
        values, origin = table[number], table.origin(number)
        candidates, types = candidate_texts(values, origin)
        image = self.image_path(table, values["qry_image_path"], origin)
        mask = object_mask(values, image, origin) if self.masks else None
        prompt = object_prompt(self.prompt, values, image, origin)
        return ScarQuestion(
            query=Example(self._query_text(values["qry_text"], origin), (image,), prompt, origin, upright=False),
            candidates=candidates,
            types=types,
            box=object_box(values["bbox"], origin),
            point=object_point(values, image, origin) if values.get("point") is not None or self.masks else None,
            mask=mask,
            category=values["category"] or "",
            image_id=values["image_id"],
            dataset=dataset_name(table.path),
            row=row,
        )

    def _query_text(self, value: object, origin: str) -> str:
        return marked_text(value, "qry_text", origin).replace(IMAGE_MARKER, IMAGE_MARKER + self.gap)


def dataset_name(path: Path) -> str:
    """The data set that a SCaR file holds: "ADE20K" for `SCaR_eval_ADE20K.parquet` or `SCAR_ADE20K_val_filtered`."""
    name = path.stem
    for prefix in ("SCaR_eval_", "SCaR_train_", "SCAR_"):
        name = name.removeprefix(prefix)
    return name.removesuffix("_filtered").removesuffix("_val")


def _checked_weights(prompts: Mapping[str, float]) -> dict[str, float]:
    unknown = [kind for kind in prompts if kind not in PROMPT_KINDS]
    if unknown or any(not math.isfinite(w) or w < 0 for w in prompts.values()) or not sum(prompts.values()):
        raise ValueError(f"prompts {dict(prompts)}: expected weights >= 0, not all 0, for kinds out of {PROMPT_KINDS}")
    return {kind: float(prompts[kind]) for kind in PROMPT_KINDS if prompts.get(kind)}


def _choose(weights: Mapping[str, float], key: str) -> str:
    """A kind drawn by its weight, the same for the same key."""
    draw = (
        int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") / 2**64 * sum(weights.values())
    )
    for kind, weight in weights.items():
        draw -= weight
        if draw < 0:
            return kind
    return kind
