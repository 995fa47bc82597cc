"""Encoded examples -> one packed row group, a `Batch` of static shape (`virtue_jax/batch.py`)."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from virtue_jax.batch import Batch, RowShape
from virtue_jax.config import VirtueConfig
from virtue_jax.data.encoding.encode import EncodedExample, EncodedImage, Label
from virtue_jax.data.encoding.prompts import EncodedPrompt
from virtue_jax.data.packing.invariants import check_packable
from virtue_jax.data.packing.layout import PATCHES_PER_TOKEN, check_shape, empty_batch
from virtue_jax.data.packing.need import need_of, origins, shortage

Row = Sequence[EncodedExample]


def pack_rows(
    rows: Sequence[Row],
    shape: RowShape,
    config: VirtueConfig,
    *,
    vision: Sequence[Mapping[str, int]],
    pixels: str = "float32",
    each: Callable = map,
) -> Batch:
    """Packs each row's examples one after another, padding at the right.

    config: of the model that the examples were encoded for. vision: {image key: vision row} of each row, as `first_fit`
    gives it. pixels: dtype of `patches` and `sam_images`; "uint8" = grey levels. An image that several examples of a
    row share (same key) is stored once. `sam_images` holds the images that prompts are on. A group whose shape has
    patches = 0 (prompts = 0) has None from `vision_slot` (`prompt_slot`) on; one without masks has no `prompt_masks`.
    each: a `map` to write pixels with, such as a thread pool's.

    Raises:
        ValueError: a row that exceeds a capacity: names row, examples, what overflows, need and capacity; vision places
            that are not one mapping per row, or do not hold a row's images; an impossible shape; examples encoded for
            another model.
    """
    check_shape(shape)
    if len(vision) != len(rows):
        raise ValueError(f"vision: places for {len(vision)} rows, expected one mapping for each of {len(rows)}")
    batch = empty_batch(len(rows), shape, config.sam2.image_size, config.vision.patch_dim, pixels)
    writes: list[tuple[Callable, np.ndarray]] = []
    for r, (row, where) in enumerate(zip(rows, vision, strict=True)):
        for example in row:
            check_packable(example, config)
        _check_capacity(r, row, shape, where)
        writes += _place_row(batch, r, row, where, config.segmentation_tokens)
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
        label = Label.query() if example.label is None else example.label
        batch.side[r, k], batch.content[r, k] = label.side, label.content
        batch.positives[r, k, : len(label.positives)] = label.positives
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
    vision_rows, capacity = batch.patches.shape[1:3]
    used, numbers = [0] * vision_rows, [0] * vision_rows
    first_token, writes = {}, []
    for key, image in distinct_images(row).items():
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
    return np.where(slots >= 0, m * segmentation_tokens + slots, -1)


def _place_prompt(batch: Batch, r: int, m: int, prompt: EncodedPrompt) -> None:
    batch.prompt_points[r, m, : len(prompt.points)] = prompt.points
    batch.prompt_labels[r, m, : len(prompt.labels)] = prompt.labels
    if prompt.mask is not None:
        batch.has_mask[r, m] = True
        batch.prompt_masks[r, m] = prompt.mask


def _check_capacity(r: int, row: Row, shape: RowShape, where: Mapping[str, int]) -> None:
    need = need_of(row)
    over = shortage(need, shape)
    used = [0] * shape.vision_rows
    for key, patches, _ in () if over else need.images:
        if not 0 <= where.get(key, -1) < len(used):
            over.append(f"image {key} has the vision row {where.get(key)}, expected 0 to {len(used) - 1}")
        else:
            used[where[key]] += patches
    over += [
        f"vision row {v}: {patches} patches needed, capacity {shape.patches}"
        for v, patches in enumerate(used)
        if patches > shape.patches
    ]
    if over:
        raise ValueError(
            f"row {r} ({origins(row)}) overflows: {'; '.join(over)}; put fewer examples into a row or enlarge it"
        )
