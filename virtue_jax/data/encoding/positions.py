"""Rotary positions of a whole sequence, [segmentation tokens][text with vision tokens], by three schemes.

| scheme | segmentation tokens | everything after them | used by |
|---|---|---|---|
| `prefix` | 0 | S, S+1, ... on all axes (S = number of segmentation tokens) | `Compat.released` |
| `sequential` | 0 | 0, 1, ... on all axes | the released code's first forward pass |
| `mrope` | 0 | Qwen2-VL's M-RoPE with an origin of its own, 0 | `Compat.paper` |

Text alone counts 0, 1, ... in all three. In `mrope` every image has three-dimensional positions, whether or not
`<|vision_start|>` stands before it: who chooses the scheme by name wants it in effect, as does transformers 5.
(transformers 4, and with it the reference, counts images by `<|vision_start|>` and gives one without it the positions
of text, which is `sequential`.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from virtue_jax.config import POSITION_SCHEMES


class ImageSpan(NamedTuple):
    """The vision tokens of one image in the text: first index, and rows and columns of its grid after the 2x2 merge."""

    start: int
    rows: int
    columns: int


def rotary_positions(
    scheme: str, length: int, images: Sequence[ImageSpan] = (), segmentation_tokens: int = 0
) -> np.ndarray:
    """int32[3, segmentation_tokens + length]: (temporal, height, width) position of every slot.

    length: tokens of the expanded text. images: its vision tokens, in order.

    Raises:
        ValueError: unknown scheme.
    """
    if scheme not in POSITION_SCHEMES:
        raise ValueError(f"positions: {scheme!r} is not one of {', '.join(POSITION_SCHEMES)}")
    positions = np.zeros((3, segmentation_tokens + length), np.int32)
    if scheme == "mrope":
        positions[:, segmentation_tokens:] = multimodal_positions(length, images)
    else:
        origin = segmentation_tokens if scheme == "prefix" else 0
        positions[:, segmentation_tokens:] = origin + np.arange(length)
    return positions


def multimodal_positions(length: int, images: Sequence[ImageSpan]) -> np.ndarray:
    """int32[3, length]: Qwen2-VL's M-RoPE (arXiv 2409.12191, section 2.1), as `get_rope_index` of `transformers`.

    Words count on by one on all axes. An image at position p has p + (0, row, column); what follows it goes on
    at p + max(rows, columns), one after the largest position so far.
    """
    positions = np.empty((3, length), np.int32)
    slot = position = 0
    for start, rows, columns in images:
        positions[:, slot:start] = position + np.arange(start - slot)
        position += start - slot
        slot = start + rows * columns
        grid = np.indices((1, rows, columns), np.int32).reshape(3, -1)
        positions[:, start:slot] = position + grid
        position += max(rows, columns)
    positions[:, slot:] = position + np.arange(length - slot)
    return positions
