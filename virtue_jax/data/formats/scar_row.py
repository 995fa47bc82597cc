"""The values of one SCaR row, checked: texts, candidates, box, point, mask. Every error names file, row and remedy."""

import json
import math

import numpy as np

from virtue_jax.data.encoding.images import image_size
from virtue_jax.data.example import POSITIVE, InvalidExample, VisualPrompt
from virtue_jax.data.formats.table_rows import as_list
from virtue_jax.data.masks import decode_segmentation, deepest_pixel

CANDIDATES = 10
CANDIDATE_TYPES = ("gt", "global_context", "background_relation", "object_swap")


def candidate_texts(values: dict, origin: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The ten candidate texts and what sort each is; the first is the true one."""
    texts, types, images = as_list(values["tgt_text"]), as_list(values["neg_types"]), values.get("tgt_image_path")
    for column, entries in (("tgt_text", texts), ("neg_types", types)):
        if len(entries) != CANDIDATES or not all(isinstance(entry, str) and entry for entry in entries):
            raise InvalidExample(
                f"{origin}: {column} has {len(entries)} entries; expected a list of {CANDIDATES} texts"
            )
    if types[0] != "gt" or "gt" in types[1:] or not set(types) <= set(CANDIDATE_TYPES):
        raise InvalidExample(
            f"{origin}: neg_types {types}; expected 'gt' first, then sorts out of {CANDIDATE_TYPES[1:]}"
        )
    if images and any(images):
        raise InvalidExample(f"{origin}: tgt_image_path {images}; SCaR's candidates are texts, expected empty paths")
    return tuple(texts), tuple(types)


def object_box(value: object, origin: str) -> tuple[float, float, float, float]:
    """COCO's (x, y, w, h) as (x1, y1, x2, y2); integers stay integers, as the reference's prompts write them."""
    numbers = as_list(value)
    if len(numbers) != 4 or not all(isinstance(v, int | float) and math.isfinite(v) for v in numbers):
        raise InvalidExample(f"{origin}: bbox {value!r}; expected four finite numbers [x, y, width, height] in pixels")
    x, y, width, height = numbers
    if width <= 0 or height <= 0:
        raise InvalidExample(
            f"{origin}: bbox {numbers} is empty; expected [x, y, width, height] with positive width, height"
        )
    return x, y, x + width, y + height


def object_prompt(kind: str, values: dict, image: str, origin: str) -> VisualPrompt | None:
    """The prompt of a kind: "box", "point", "mask", or None for "none"."""
    box = object_box(values["bbox"], origin)
    match kind:
        case "box":
            return VisualPrompt(box=box)
        case "point":
            return VisualPrompt(points=((*object_point(values, image, origin), POSITIVE),))
        case "mask":
            return VisualPrompt(mask=object_mask(values, image, origin))
    return None


def object_point(values: dict, image: str, origin: str) -> tuple[float, float]:
    """(x, y) of a pixel inside: the row's own point, else one deep inside its segmentation."""
    point = values.get("point")
    if point is None:
        return deepest_pixel(object_mask(values, image, origin))
    if len(as_list(point)) != 2 or not all(isinstance(v, int | float) and math.isfinite(v) for v in point):
        raise InvalidExample(f"{origin}: point {point!r}; expected [x, y] in pixels")
    return tuple(point)


def object_mask(values: dict, image: str, origin: str) -> np.ndarray:
    """bool[H, W] from the row's segmentation: run lengths (plain, compressed, as JSON) or polygons."""
    value = values.get("segmentation")
    if value is None:
        raise InvalidExample(f"{origin}: no segmentation, so neither mask nor point can be made of it; use box prompts")
    height, width = image_size(image, origin)
    try:
        if isinstance(value, str) and value[:1] in ("{", "["):
            value = json.loads(value)
        if isinstance(value, str | bytes):
            value = {"size": [height, width], "counts": value}
        mask = decode_segmentation(value, height, width)
    except (ValueError, RecursionError) as error:
        raise InvalidExample(f"{origin}: {error}") from error
    if not mask.any():
        raise InvalidExample(f"{origin}: the segmentation has no pixel inside; correct it or use box prompts")
    return mask
