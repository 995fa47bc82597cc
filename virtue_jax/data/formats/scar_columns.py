"""The columns of SCaR-Train and SCaR-Eval, for who reads them and who writes them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from virtue_jax.data.masks import rle_encode

_TEXT, _TEXTS = pa.string(), pa.list_(pa.string())
_OBJECT = [
    ("bbox", pa.list_(pa.int64())),
    ("segmentation", pa.struct([("size", pa.list_(pa.int64())), ("counts", pa.list_(pa.int32()))])),
    ("category", _TEXT),
    ("image_id", pa.int64()),
    ("point", pa.list_(pa.int64())),
]
EVAL_SCHEMA = pa.schema(
    [
        ("qry_text", _TEXT),
        ("qry_image_path", _TEXT),
        ("tgt_text", _TEXTS),
        ("tgt_image_path", _TEXTS),
        ("original_caption", _TEXT),
        ("neg_types", _TEXTS),
        *_OBJECT,
    ]
)
TRAIN_SCHEMA = pa.schema(
    [
        ("qry", _TEXT),
        ("qry_image_path", _TEXT),
        ("pos_text", _TEXT),
        ("pos_image_path", _TEXT),
        ("neg_text", _TEXTS),
        ("neg_image_path", _TEXTS),
        *_OBJECT,
    ]
)
EVAL_REQUIRED = ("qry_text", "qry_image_path", "tgt_text", "neg_types", "bbox", "category", "image_id")
TRAIN_REQUIRED = ("qry", "qry_image_path", "pos_text", "pos_image_path", "bbox")


class PointedObject(NamedTuple):
    """The object that a row points at. box: (x, y, width, height) in whole pixels of the image; mask: bool[H, W];
    point: (x, y) of a pixel inside."""

    box: tuple[int, int, int, int]
    mask: np.ndarray
    point: tuple[int, int]
    category: str
    image_id: int


def eval_row(
    text: str, image: str, pointed: PointedObject, candidates: Sequence[str], types: Sequence[str]
) -> dict[str, object]:
    """A row of SCaR-Eval. text: of the query, with its image marker; image: path below the image root. candidates: ten
    texts, the true one first; types: what sort each is."""
    return {
        "qry_text": text,
        "qry_image_path": image,
        "tgt_text": list(candidates),
        "tgt_image_path": [""] * len(candidates),
        "original_caption": candidates[0],
        "neg_types": list(types),
    } | _object_values(pointed)


def train_row(
    text: str, image: str, pointed: PointedObject, caption: str, negatives: Sequence[str] = ()
) -> dict[str, object]:
    """A row of SCaR-Train: as `eval_row`, with the true caption and any hard negatives, all of them texts."""
    return {
        "qry": text,
        "qry_image_path": image,
        "pos_text": caption,
        "pos_image_path": "",
        "neg_text": list(negatives),
        "neg_image_path": [""] * len(negatives),
    } | _object_values(pointed)


def _object_values(pointed: PointedObject) -> dict[str, object]:
    return {
        "bbox": list(pointed.box),
        "segmentation": rle_encode(pointed.mask),
        "category": pointed.category,
        "image_id": pointed.image_id,
        "point": list(pointed.point),
    }
