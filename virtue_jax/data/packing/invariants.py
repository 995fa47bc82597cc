"""The invariants of a packed row group, checked on its arrays: for tests, and for batches from anywhere else."""

import numpy as np

from virtue_jax.batch import NO_TOKEN, NOT_A_POINT, QUERY, TARGET, Batch, RowShape
from virtue_jax.data.packing.layout import PATCHES_PER_TOKEN, batch_layout

_LABELS = (0, 1, 2, 3, NOT_A_POINT, NO_TOKEN)


def validate(
    batch: Batch,
    shape: RowShape,
    *,
    segmentation_tokens: int,
    sam_size: int,
    patch_dim: int = 588,
    pixels: str = "float32",
) -> None:
    """Checks shapes, dtypes and the promises of `batch.py` that models rely on.

    Raises:
        ValueError: lists everything that is wrong, with the rows in which it is.
    """
    wrong = _layout_faults(batch, batch_layout(shape, sam_size=sam_size, patch_dim=patch_dim, pixels=pixels))
    if not wrong:  # contents only make sense once the arrays are the right ones
        faults = _row_faults(batch) | _pool_faults(batch)
        if shape.patches:
            faults |= _vision_faults(batch, shape)
        if shape.prompts:
            faults |= _prompt_faults(batch, shape, segmentation_tokens)
        wrong = [f"{what} (rows {np.flatnonzero(bad).tolist()})" for what, bad in faults.items() if bad.any()]
    if wrong:
        raise ValueError(f"invalid batch for {shape}: " + "; ".join(wrong))


def _layout_faults(batch: Batch, layout: dict) -> list[str]:
    wrong, rows = [], len(batch.tokens)
    for name, array in batch._asdict().items():
        if name not in layout:
            wrong += [] if array is None else [f"{name} is there, the shape has none"]
            continue
        dtype, tail = layout[name]
        if array is None or array.dtype != dtype or array.shape != (rows, *tail):
            found = "missing" if array is None else f"{array.dtype}{list(array.shape)}"
            wrong.append(f"{name} is {found}, expected {np.dtype(dtype)}{[rows, *tail]}")
    return wrong


def _row_faults(batch: Batch) -> dict[str, np.ndarray]:
    """Each fault with bool[R], the rows that have it."""
    segments = batch.segments
    real = segments > 0
    word = real.copy()
    for slot in (batch.vision_slot, batch.prompt_slot):
        if slot is not None:
            word &= slot < 0
    steps = np.diff(np.concatenate([np.zeros((len(segments), 1), np.int32), segments], axis=1), axis=1)
    return {
        "padding before the row's end": (real[:, 1:] & ~real[:, :-1]).any(1),
        "segments are not 1, 2, ... in order": ((steps != 0) & (steps != 1) & real).any(1),
        "tokens where no word stands": (~word & (batch.tokens != 0)).any(1),
        "negative token": (batch.tokens < 0).any(1),
        "negative position": (batch.positions < 0).any((1, 2)),
    }


def _pool_faults(batch: Batch) -> dict[str, np.ndarray]:
    segments, valid = batch.segments, batch.valid
    number = np.arange(1, valid.shape[1] + 1)
    target, listed = batch.side == TARGET, batch.positives >= 0
    last = np.where(segments[:, :, None] == number, np.arange(segments.shape[1])[None, :, None], -1).max(1, initial=-1)
    return {
        "valid does not match the segments": (valid != (last >= 0)).any(1) | (segments.max(1) > valid.shape[1]),
        "pool is not the last slot of its segment": (valid & (batch.pool != last)).any(1),
        "side is neither QUERY nor TARGET": ~np.isin(batch.side, (QUERY, TARGET)).all(1),
        "a target without content, or a query with one": (valid & ((batch.content >= 0) != target)).any(1),
        "positives of a target": (target[:, :, None] & listed).any((1, 2)),
        "a positive after the last one": (listed[:, :, 1:] & ~listed[:, :, :-1]).any((1, 2)),
        "content or positives at an unused place": (~valid & ((batch.content >= 0) | listed.any(2))).any(1),
    }


def _vision_faults(batch: Batch, shape: RowShape) -> dict[str, np.ndarray]:
    rows, owner = len(batch.tokens), batch.patch_segments
    quads = owner.reshape(rows, -1, PATCHES_PER_TOKEN)
    ordered = np.where(owner == 0, np.iinfo(np.int32).max, owner)
    slot = batch.vision_slot
    inside = (slot >= -1) & (slot < quads.shape[1])
    owned = np.take_along_axis(quads[:, :, 0], np.clip(slot, 0, quads.shape[1] - 1), axis=1) > 0
    steps = np.diff(np.concatenate([np.zeros_like(owner[:, :, :1]), owner], axis=2), axis=2)
    return {
        "vision_slot out of range": ~inside.all(1),
        "vision_slot at a padding patch": ((slot >= 0) & ~owned).any(1),
        "vision_slot at padding": ((slot >= 0) & (batch.segments == 0)).any(1),
        "patch_segments are not 1, 2, ... in order": (((steps < 0) | (steps > 1)) & (owner > 0)).any((1, 2)),
        "patch_segments differ inside a vision token": (quads != quads[:, :, :1]).any((1, 2)),
        "patches after padding": (np.diff(ordered) < 0).any((1, 2)),
        "patches not finite": ~np.isfinite(batch.patches).all((1, 2, 3)),
    }


def _prompt_faults(batch: Batch, shape: RowShape, segmentation_tokens: int) -> dict[str, np.ndarray]:
    slot, labels = batch.prompt_slot, batch.prompt_labels
    total = shape.prompts * segmentation_tokens
    counts = np.stack([np.bincount(row[(row >= 0) & (row < total)], minlength=total) for row in slot])
    blocks = counts.reshape(len(slot), shape.prompts, segmentation_tokens)
    used = blocks.any(2)
    prompted = used | (labels != NO_TOKEN).any(2) | batch.has_mask
    faults = {
        "prompt_slot out of range": ((slot < -1) | (slot >= total)).any(1),
        "prompt_slot at padding": ((slot >= 0) & (batch.segments == 0)).any(1),
        "a slot with both a vision and a segmentation token": ((slot >= 0) & (batch.vision_slot >= 0)).any(1),
        "segmentation tokens missing or repeated": (blocks != used[:, :, None]).any((1, 2)),
        "segmentation tokens without a prompt, or a prompt without them": (used != prompted).any(1),
        "unknown prompt label": ~np.isin(labels, _LABELS).all((1, 2)),
        "prompt_image out of range": ((batch.prompt_image < 0) | (batch.prompt_image >= shape.images)).any(1),
        "sam_images not finite": ~np.isfinite(batch.sam_images).all((1, 2, 3, 4)),
        "prompt_points not finite": ~np.isfinite(batch.prompt_points).all((1, 2, 3)),
    }
    on_image = batch.prompt_image[:, :, None] == np.arange(shape.images)
    on_image = (on_image & used[:, :, None]).any(1)  # images that prompts are on come first
    faults["an image without a prompt before one with"] = (on_image[:, 1:] & ~on_image[:, :-1]).any(1)
    if batch.prompt_masks is not None:
        faults["mask logits where has_mask is False"] = (~batch.has_mask & batch.prompt_masks.any((2, 3))).any(1)
    else:
        faults["has_mask without prompt_masks"] = batch.has_mask.any(1)
    return faults
