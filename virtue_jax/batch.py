"""Which arrays: one packed row group, the only thing that passes from the data pipeline to the models."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

NOT_A_POINT = -1  # SAM-2's own label for its padding point: a real token, `not_a_point_embed`
NO_TOKEN = -2  # ours: nothing stands here; the two-way transformer masks it out
QUERY, TARGET = 0, 1


@dataclass(frozen=True)
class RowShape:
    """Static capacities of one row of a row group; one compiled program per shape.

    slots: language model positions (L). examples: embeddings that leave the row (K). positives: alternatives that one
    query may have (A). vision_rows: runs of Qwen's vision tower (V), each with room for `patches` (P, a multiple of 4);
    an image lies whole in one of them, several may share one. images: images that prompts are on (I), each run once
    through SAM-2. prompts: visual prompts (M), each giving one block of segmentation tokens. points: sparse prompt
    tokens per prompt (N), SAM-2's own `not_a_point` padding included. masks: whether rows carry mask prompts.
    A text-only group has no patches, a group without segmentation tokens no images.
    """

    slots: int
    examples: int = 1
    positives: int = 1
    vision_rows: int = 0
    patches: int = 0
    images: int = 0
    prompts: int = 0
    points: int = 0
    masks: bool = False


class Batch(NamedTuple):
    """R packed rows of one row group. Every array leads with R; a group without patches has None from `vision_slot` on,
    one without segmentation has None from `prompt_slot` on, one without mask prompts has no `prompt_masks`.

    | field | dtype[shape] | meaning |
    |---|---|---|
    | tokens | int32[R, L] | token ids; 0 where another embedding stands or at padding |
    | segments | int32[R, L] | 1 + example number in the row; 0 = padding |
    | positions | int32[R, 3, L] | rotary positions (temporal, height, width), segmentation tokens included |
    | pool | int32[R, K] | slot of example k's last token |
    | side | int32[R, K] | QUERY or TARGET |
    | content | int32[R, K] | digest of a target's content; -1 for a query |
    | positives | int32[R, K, A] | contents of the targets that a query matches; -1 = no further one, and for a target |
    | valid | bool[R, K] | False for an unused place |
    | vision_slot | int32[R, L] | index v * P/4 + i of token i of vision row v that stands here, -1 = none |
    | patches | float[R, V, P, 588] | CLIP-normalised pixels, (channel, y, x), one frame |
    | patch_yx | int32[R, V, P, 2] | row and column of the patch in its image |
    | patch_segments | int32[R, V, P] | 1 + number of the image in its vision row; 0 = padding |
    | prompt_slot | int32[R, L] | index m * S + s of segmentation token s of prompt m that stands here, -1 = none |
    | sam_images | float[R, I, H, H, 3] | SAM input, normalised |
    | prompt_image | int32[R, M] | which of the row's `sam_images` prompt m is on |
    | prompt_points | float32[R, M, N, 2] | (x, y) in SAM's pixel frame, before the half-pixel shift |
    | prompt_labels | int32[R, M, N] | 1, 0, 2, 3 as SAM-2; NOT_A_POINT; NO_TOKEN = padding |
    | has_mask | bool[R, M] | whether prompt m has a mask |
    | prompt_masks | float32[R, M, H/4, H/4] | mask logits, 0 where has_mask is False |
    """

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    pool: np.ndarray
    side: np.ndarray
    content: np.ndarray
    positives: np.ndarray
    valid: np.ndarray
    vision_slot: np.ndarray | None = None
    patches: np.ndarray | None = None
    patch_yx: np.ndarray | None = None
    patch_segments: np.ndarray | None = None
    prompt_slot: np.ndarray | None = None
    sam_images: np.ndarray | None = None
    prompt_image: np.ndarray | None = None
    prompt_points: np.ndarray | None = None
    prompt_labels: np.ndarray | None = None
    has_mask: np.ndarray | None = None
    prompt_masks: np.ndarray | None = None
