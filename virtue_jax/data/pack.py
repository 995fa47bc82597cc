"""Encoded examples -> one packed row group, a `Batch` of static shape (`virtue_jax/batch.py`)."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from virtue_jax.batch import NO_TOKEN, QUERY, Batch, RowShape
from virtue_jax.data.encode import EncodedExample, EncodedImage
from virtue_jax.data.prompts import EncodedPrompt

Row = Sequence[EncodedExample]
PATCHES_PER_TOKEN = 4  # Qwen2-VL merges 2x2 patches into one vision token
UNUSED_PAIR = -1


def row_need(row: Row) -> RowShape:
    """The smallest shape that holds one row; images shared by its examples are counted once."""
    images = _distinct_images(row)
    prompts = [example.prompt for example in row if example.prompt is not None]
    return RowShape(
        slots=sum(len(example) for example in row),
        examples=len(row),
        images=len(images),
        patches=sum(len(image.patches) for image in images.values()),
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
    _check_shape(shape)
    return shape


def pack_rows(
    rows: Sequence[Row],
    shape: RowShape,
    *,
    segmentation_tokens: int,
    sam_size: int,
    patch_dim: int = 588,
    sides: Sequence[Sequence[int]] | None = None,
    pairs: Sequence[Sequence[int]] | None = None,
) -> Batch:
    """Packs each row's examples one after another, padding at the right.

    segmentation_tokens, sam_size, patch_dim: of the model (`VirtueConfig`). sides, pairs: QUERY or TARGET, and pair
    id, of each example; without them every example is a query with a pair id of its own (embedding only). An image that
    several examples of a row share (same key) is stored once. SAM inputs are zero for images that no prompt is on.
    Unused places have pair UNUSED_PAIR and labels NO_TOKEN. A group whose shape has images = 0 (prompts = 0) has None
    from `vision_slot` (`prompt_slot`) on; one without masks has no `prompt_masks`.

    Raises:
        ValueError: a row that exceeds a capacity: names row, examples, what overflows, need and capacity; sides or
            pairs that are not one per example; an impossible shape; examples encoded for another model.
    """
    _check_shape(shape)
    _check_capacity(rows, shape)
    lengths = [len(row) for row in rows]
    for name, given in (("sides", sides), ("pairs", pairs)):
        if given is not None and [len(row) for row in given] != lengths:
            raise ValueError(f"{name}: {[len(row) for row in given]} per row, expected one per example: {lengths}")
    batch = _empty(len(rows), shape, segmentation_tokens, sam_size, patch_dim)
    for r, row in enumerate(rows):
        first = sum(lengths[:r])
        batch.side[r, : len(row)] = QUERY if sides is None else sides[r]
        batch.pair[r, : len(row)] = np.arange(first, first + len(row)) if pairs is None else pairs[r]
        _place_row(batch, r, row, segmentation_tokens)
    return batch


def _place_row(batch: Batch, r: int, row: Row, segmentation_tokens: int) -> None:
    first_token = _place_images(batch, r, row) if batch.patches is not None else {}
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
            batch.prompt_image[r, prompts] = list(first_token).index(example.images[0].key)
            _place_prompt(batch, r, prompts, example.prompt)
            prompts += 1


def _distinct_images(row: Row) -> dict[str, EncodedImage]:
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


def _place_images(batch: Batch, r: int, row: Row) -> dict[str, int]:
    """Writes the row's images; returns the row's first vision token of each, in the order of their numbers."""
    first_token, patch = {}, 0
    for i, (key, image) in enumerate(_distinct_images(row).items()):
        place = slice(patch, patch + len(image.patches))
        first_token[key] = patch // PATCHES_PER_TOKEN
        patch = place.stop
        _check_model(image, batch)
        batch.patches[r, place] = image.patches
        batch.patch_yx[r, place] = image.patch_yx
        batch.patch_segments[r, place] = i + 1
        if batch.sam_images is not None and image.sam is not None:
            batch.sam_images[r, i] = image.sam
    return first_token


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
        batch.has_mask[r, m] = True
        batch.prompt_masks[r, m] = prompt.mask


def _empty(rows: int, shape: RowShape, segmentation_tokens: int, sam_size: int, patch_dim: int) -> Batch:
    """A batch of padding only."""
    layout = batch_layout(shape, sam_size=sam_size, patch_dim=patch_dim)
    filler = {"pair": UNUSED_PAIR, "vision_slot": -1, "prompt_slot": -1, "prompt_labels": NO_TOKEN}
    return Batch(**{name: np.full((rows, *tail), filler.get(name, 0), dtype) for name, (dtype, tail) in layout.items()})


def batch_layout(shape: RowShape, *, sam_size: int, patch_dim: int = 588) -> dict[str, tuple[type, tuple[int, ...]]]:
    """dtype and shape without the leading R of every array that a batch of this shape has; absent names are None."""
    slots, examples, patches = shape.slots, shape.examples, shape.patches
    layout = {
        "tokens": (np.int32, (slots,)),
        "segments": (np.int32, (slots,)),
        "positions": (np.int32, (3, slots)),
        "pool": (np.int32, (examples,)),
        "side": (np.int32, (examples,)),
        "pair": (np.int32, (examples,)),
        "valid": (np.bool_, (examples,)),
    }
    if shape.images:
        layout |= {
            "vision_slot": (np.int32, (slots,)),
            "patches": (np.float32, (patches, patch_dim)),
            "patch_yx": (np.int32, (patches, 2)),
            "patch_segments": (np.int32, (patches,)),
        }
    if shape.prompts:
        layout |= {
            "prompt_slot": (np.int32, (slots,)),
            "sam_images": (np.float32, (shape.images, sam_size, sam_size, 3)),
            "prompt_image": (np.int32, (shape.prompts,)),
            "prompt_points": (np.float32, (shape.prompts, shape.points, 2)),
            "prompt_labels": (np.int32, (shape.prompts, shape.points)),
            "has_mask": (np.bool_, (shape.prompts,)),
        }
    if shape.masks:
        layout["prompt_masks"] = (np.float32, (shape.prompts, sam_size // 4, sam_size // 4))
    return layout


def _check_shape(shape: RowShape) -> None:
    if shape.patches % PATCHES_PER_TOKEN or bool(shape.patches) != bool(shape.images):
        raise ValueError(f"{shape}: patches must be a multiple of 4, and 0 exactly where images is 0")
    if (shape.prompts and not shape.images) or ((shape.points or shape.masks) and not shape.prompts):
        raise ValueError(f"{shape}: prompts need images; points and masks need prompts")


def _check_model(image: EncodedImage, batch: Batch) -> None:
    expected = {"patches": (image.patches.shape[1:], batch.patches.shape[2:])}
    if batch.sam_images is not None and image.sam is not None:
        expected["sam_images"] = (image.sam.shape, batch.sam_images.shape[2:])
    for name, (found, wanted) in expected.items():
        if found != wanted:
            raise ValueError(f"image {image.key}: {name} are {found}, the model's {wanted}; encode with its config")


def _check_capacity(rows: Sequence[Row], shape: RowShape) -> None:
    for r, row in enumerate(rows):
        need = row_need(row)
        over = [
            f"{field.name}: {getattr(need, field.name)} needed, capacity {getattr(shape, field.name)}"
            for field in fields(RowShape)
            if getattr(need, field.name) > getattr(shape, field.name)
        ]
        if over:
            raise ValueError(
                f"row {r} ({_origins(row)}) overflows: {'; '.join(over)}; put fewer examples into a row or enlarge it"
            )


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
