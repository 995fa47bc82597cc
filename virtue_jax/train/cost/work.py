"""How much work a step holds: real tokens, patches, images and prompts of its batches, or the room for them."""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

from virtue_jax.batch import NO_TOKEN, Batch
from virtue_jax.data.config import RowGroup


@dataclass(frozen=True)
class Work:
    """What the arithmetic is done on, summed over rows.

    tokens: language model slots; token_pairs: sum over examples of length squared. patches and patch_pairs: the same of
    images in Qwen's tower. images: runs of SAM-2's image encoder. prompts: runs of its two-way transformer;
    prompt_tokens: their sparse tokens; masks: prompts with a mask.
    """

    tokens: int = 0
    token_pairs: int = 0
    patches: int = 0
    patch_pairs: int = 0
    images: int = 0
    prompts: int = 0
    prompt_tokens: int = 0
    masks: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)))


def batch_work(groups: Iterable[Batch]) -> Work:
    """The real work in host batches (numpy), all of their rows; for several processes, each its own rows."""
    return sum((_batch_work(batch) for batch in groups), Work())


def _batch_work(batch: Batch) -> Work:
    tokens, token_pairs = _lengths(batch.segments)
    work = Work(tokens=tokens, token_pairs=token_pairs)
    if batch.patch_segments is not None:
        patches, patch_pairs = _lengths(batch.patch_segments.reshape(-1, batch.patch_segments.shape[-1]))
        work += Work(patches=patches, patch_pairs=patch_pairs)
    if batch.prompt_labels is not None:
        present = batch.prompt_labels != NO_TOKEN
        real = present.any(-1)
        on = [np.unique(images[used]).size for images, used in zip(batch.prompt_image, real, strict=True)]
        masks = 0 if batch.prompt_masks is None else int(batch.has_mask.sum())
        work += Work(images=sum(on), prompts=int(real.sum()), prompt_tokens=int(present.sum()), masks=masks)
    return work


def _lengths(segments_RL: np.ndarray) -> tuple[int, int]:
    """Sum of the lengths of all segments but 0, and of their squares."""
    rows = np.arange(len(segments_RL))[:, None] * (int(segments_RL.max(initial=0)) + 1)
    counts = np.bincount((rows + segments_RL)[segments_RL > 0]).astype(np.int64)
    return int(counts.sum()), int(np.square(counts).sum())


def capacity(group: RowGroup) -> Work:
    """The work that a row group has room for: every slot and patch used, attention over whole rows."""
    shape, rows = group.shape, group.rows
    prompts = rows * shape.prompts
    return Work(
        tokens=rows * shape.slots,
        token_pairs=rows * shape.slots**2,
        patches=rows * shape.vision_rows * shape.patches,
        patch_pairs=rows * shape.vision_rows * shape.patches**2,
        images=rows * shape.images,
        prompts=prompts,
        prompt_tokens=prompts * shape.points,
        masks=prompts if shape.masks else 0,
    )
