"""The invariants of packed rows: each one broken is found, in its row."""

import dataclasses

import numpy as np
import pytest

from virtue_jax.batch import NOT_A_POINT
from virtue_jax.data.example import Example
from virtue_jax.data.packing.invariants import validate
from virtue_jax.data.packing.need import row_shape
from virtue_jax.data.packing.pack import pack_rows


def test_packed_batches_are_valid(rows, packed, small_sam_encoder):
    shape, batch = packed
    config = small_sam_encoder.config
    validate(batch, shape, config)
    text = [[small_sam_encoder.encode(Example("hi"))]]
    shape = row_shape(text, slots=8)
    validate(pack_rows(text, shape, config, vision=[{}]), shape, config)


def change(array: np.ndarray, place, value) -> np.ndarray:
    changed = array.copy()
    changed[place] = value
    return changed


@pytest.mark.parametrize(
    "name, place, value, message",
    [
        ("segments", (0, 3), 0, "padding before the row's end"),
        ("segments", (1, 5), 3, "segments are not 1, 2"),
        ("tokens", (0, -1), 7, "tokens where no word stands"),
        ("tokens", (1, 0), 7, "tokens where no word stands"),
        ("positions", (0, 0, 0), -1, "negative position"),
        ("pool", (0, 0), 2, "pool is not the last slot"),
        ("valid", (0, 1), False, "valid does not match"),
        ("valid", (1, 2), True, "valid does not match"),
        ("side", (0, 0), 2, "side is neither"),
        ("content", (0, 1), -1, "a target without content"),
        ("content", (0, 0), 3, "a query with one"),
        ("content", (1, 1), 3, "content or positives at an unused place"),
        ("positives", (0, 1, 0), 3, "positives of a target"),
        ("positives", (0, 0, 0), -1, "a positive after the last one"),
        ("vision_slot", (0, 0), 10**6, "vision_slot out of range"),
        ("vision_slot", (1, -1), 0, "vision_slot at padding"),
        ("vision_slot", (0, 0), 0, "both a vision and a segmentation"),
        ("patch_segments", (0, 0, 0), 2, "differ inside a vision token"),
        ("patch_segments", (0, 0, slice(0, 4)), 2, "patch_segments are not 1, 2"),
        ("patch_segments", (1, 0, slice(0, 4)), 0, "patches after padding"),
        ("patches", (0, 0, 0, 0), np.nan, "patches not finite"),
        ("prompt_slot", (0, 0), -1, "segmentation tokens missing or repeated"),
        ("prompt_slot", (1, -1), 3, "prompt_slot at padding"),
        ("prompt_labels", (0, 0, 0), 9, "unknown prompt label"),
        ("prompt_labels", (1, 1, 0), NOT_A_POINT, "a prompt without them"),
        ("prompt_image", (1, 0), 1, "an image without a prompt before one with"),
        ("prompt_image", (1, 0), 2, "prompt_image out of range"),
        ("has_mask", (1, 0), False, "mask logits where has_mask is False"),
        ("sam_images", (0, 0, 0, 0, 0), np.inf, "sam_images not finite"),
    ],
)
def test_each_broken_promise_is_found_and_its_row_named(name, place, value, message, packed, small_sam_encoder):
    shape, batch = packed
    broken = batch._replace(**{name: change(getattr(batch, name), place, value)})
    with pytest.raises(ValueError, match=rf"{message}[^;]*\(rows \[{place[0]}\]\)"):
        validate(broken, shape, small_sam_encoder.config)


def test_wrong_arrays_are_named_with_what_was_expected(packed, small_sam_encoder):
    shape, batch = packed
    with pytest.raises(ValueError, match=r"tokens is int64.*expected int32"):
        validate(batch._replace(tokens=batch.tokens.astype(np.int64)), shape, small_sam_encoder.config)
    with pytest.raises(ValueError, match="patches is missing"):
        validate(batch._replace(patches=None), shape, small_sam_encoder.config)
    with pytest.raises(ValueError, match="prompt_masks is there, the shape has none"):
        validate(batch, dataclasses.replace(shape, masks=False), small_sam_encoder.config)
