"""The invariants of what is packed, and of packed row groups, checked on their arrays."""

import numpy as np

from virtue_jax.batch import NO_TOKEN, NOT_A_POINT, QUERY, TARGET, Batch, RowShape
from virtue_jax.config import VirtueConfig
from virtue_jax.data.encoding.encode import EncodedExample, EncodedImage, Label
from virtue_jax.data.encoding.prompts import EncodedPrompt
from virtue_jax.data.example import InvalidExample
from virtue_jax.data.packing.layout import PATCHES_PER_TOKEN, batch_layout

_LABELS = (0, 1, 2, 3, NOT_A_POINT, NO_TOKEN)
_REMEDY = "encode it with the config of the model that it is packed for"


def check_packable(example: EncodedExample, config: VirtueConfig) -> None:
    """Refuses what cannot be packed for a model, before it shares a row with others.

    Raises:
        InvalidExample: names the example's origin, everything that is wrong with it and the remedy.
    """
    wrong = _sequence_faults(example, config.text.vocab_size)
    for number, image in enumerate(example.images):
        wrong += _image_faults(image, config, with_sam=number == 0 and example.prompt is not None)
    wrong += _segmentation_faults(example, config)
    if example.label is not None:
        wrong += _label_faults(example.label)
    if wrong:
        raise InvalidExample(f"{example.origin}: {'; '.join(wrong)}; {_REMEDY}")


def _sequence_faults(example: EncodedExample, vocabulary: int) -> list[str]:
    n = len(example)
    wrong = [] if n else ["no token"]
    for name, tail in (("tokens", (n,)), ("positions", (3, n)), ("vision", (n,)), ("segmentation", (n,))):
        array = getattr(example, name)
        if array.shape != tail or array.dtype.kind not in "iu":
            wrong.append(f"{name} are {array.dtype}{list(array.shape)}, expected integers {list(tail)}")
    if wrong:
        return wrong
    vision_tokens = sum(image.vision_tokens for image in example.images)
    for name, least, end in (("tokens", 0, vocabulary), ("positions", 0, 1 << 31), ("vision", -1, vision_tokens)):
        array = getattr(example, name)
        if array.min() < least or array.max() >= end:
            wrong.append(f"{name} from {array.min()} to {array.max()}, expected {least} to {end - 1}")
    return wrong


def _image_faults(image: EncodedImage, config: VirtueConfig, *, with_sam: bool) -> list[str]:
    patches, dim, wrong = image.patches, config.vision.patch_dim, []
    if patches.ndim != 2 or not len(patches) or len(patches) % PATCHES_PER_TOKEN or patches.dtype != np.uint8:
        wrong.append(f"patches are {patches.dtype}{list(patches.shape)}, expected a multiple of 4 of uint8")
    elif patches.shape[1] != dim:
        wrong.append(f"patches have {patches.shape[1]} values, the model's {dim}")
    if image.patch_yx.shape != (len(patches), 2):
        wrong.append(f"patch_yx is {list(image.patch_yx.shape)}, expected {[len(patches), 2]}")
    if with_sam:
        wrong += _picture_faults(image, config.sam2.image_size)
    return [f"image {image.key}: {fault}" for fault in wrong]


def _picture_faults(image: EncodedImage, side: int) -> list[str]:
    picture = image.sam
    if picture is None:
        return ["there is no picture for SAM-2"]
    expected = [side, side, 3] if image.sam_resized else ["height", "width", 3]
    right = picture.shape == (side, side, 3) if image.sam_resized else picture.ndim == 3 and picture.shape[2] == 3
    if right and picture.size and picture.dtype == np.uint8:
        return []
    return [f"the picture for SAM-2 is {picture.dtype}{list(picture.shape)}, expected uint8{expected}"]


def _segmentation_faults(example: EncodedExample, config: VirtueConfig) -> list[str]:
    places = example.segmentation[example.segmentation >= 0]
    prompt, expected = example.prompt, config.segmentation_tokens
    if prompt is None:
        return [f"{len(places)} segmentation tokens without a prompt"] if len(places) else []
    wrong = [] if example.images else ["a prompt without an image"]
    if not np.array_equal(np.sort(places), np.arange(expected)):
        wrong.append(f"encoded with {len(places)} segmentation tokens, not {expected}")
    return wrong + _prompt_array_faults(prompt, config.sam2.mask_size)


def _prompt_array_faults(prompt: EncodedPrompt, mask_size: int) -> list[str]:
    points, labels, mask, wrong = prompt.points, prompt.labels, prompt.mask, []
    if points.shape != (len(labels), 2) or labels.ndim != 1:
        wrong.append(
            f"prompt points are {list(points.shape)} with labels {list(labels.shape)}, expected [n, 2] and [n]"
        )
    elif not np.isfinite(points).all() or not np.isin(labels, _LABELS).all():
        wrong.append(
            f"prompt points {points.tolist()} with labels {labels.tolist()}, expected finite ones, known labels"
        )
    if mask is not None and mask.shape != (mask_size, mask_size):
        wrong.append(f"mask logits are {mask.shape}, the model's {(mask_size, mask_size)}")
    elif mask is not None and not np.isfinite(mask).all():
        wrong.append("mask logits are not finite")
    return wrong


def _label_faults(label: Label) -> list[str]:
    if label.side == QUERY and label.content == -1:
        contents = label.positives
    elif label.side == TARGET and not label.positives:
        contents = (label.content,)
    else:
        return [f"{label}: expected a query with positives alone, or a target with its content alone"]
    return [] if all(0 <= content < 1 << 31 for content in contents) else [f"{label}: expected contents of 31 bits"]


def validate(batch: Batch, shape: RowShape, config: VirtueConfig, *, pixels: str = "float32") -> None:
    """Checks shapes, dtypes and the promises of `batch.py` that models rely on.

    Raises:
        ValueError: lists everything that is wrong, with the rows in which it is.
    """
    layout = batch_layout(shape, sam_size=config.sam2.image_size, patch_dim=config.vision.patch_dim, pixels=pixels)
    wrong = _layout_faults(batch, layout)
    if not wrong:  # contents only make sense once the arrays are the right ones
        faults = _row_faults(batch) | _pool_faults(batch)
        if shape.patches:
            faults |= _vision_faults(batch, shape)
        if shape.prompts:
            faults |= _prompt_faults(batch, shape, config.segmentation_tokens)
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
            present = "missing" if array is None else f"{array.dtype}{list(array.shape)}"
            wrong.append(f"{name} is {present}, expected {np.dtype(dtype)}{[rows, *tail]}")
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
