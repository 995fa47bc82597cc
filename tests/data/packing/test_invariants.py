"""The invariants of packed rows: each one broken is found, in its row."""

import dataclasses

import numpy as np
import pytest

from virtue_jax.batch import NOT_A_POINT
from virtue_jax.data.encoding.encode import Label
from virtue_jax.data.example import Example, InvalidExample
from virtue_jax.data.packing.first_fit import vision_places
from virtue_jax.data.packing.invariants import check_packable, validate
from virtue_jax.data.packing.need import need_of, row_shape
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


def of_image(change):
    return lambda e: dataclasses.replace(e, images=(change(e.images[0]), *e.images[1:]))


def of_prompt(**arrays):
    return lambda e: dataclasses.replace(e, prompt=dataclasses.replace(e.prompt, **arrays))


def of_label(label):
    return lambda e: dataclasses.replace(e, label=label)


SPOILT = {
    "tokens are float64.*expected integers": lambda e: dataclasses.replace(e, tokens=e.tokens.astype(np.float64)),
    "no token": lambda e: dataclasses.replace(e, tokens=e.tokens[:0]),
    "tokens from 0 to 1024, expected 0 to 1023": lambda e: dataclasses.replace(e, tokens=change(e.tokens, -1, 1024)),
    "positions from -1 to": lambda e: dataclasses.replace(e, positions=change(e.positions, (0, -1), -1)),
    "vision from -1 to 999": lambda e: dataclasses.replace(e, vision=change(e.vision, -1, 999)),
    "encoded with 15 segmentation tokens, not 16": lambda e: dataclasses.replace(
        e, segmentation=change(e.segmentation, 3, -1)
    ),
    "segmentation tokens without a prompt": lambda e: dataclasses.replace(e, prompt=None),
    "a prompt without an image": lambda e: dataclasses.replace(e, images=(), vision=np.full_like(e.vision, -1)),
    "patches have 500 values, the model's 588": of_image(lambda i: dataclasses.replace(i, patches=i.patches[:, :500])),
    "patches are uint8.*a multiple of 4": of_image(lambda i: dataclasses.replace(i, patches=i.patches[:-1])),
    "patches are float64": of_image(lambda i: dataclasses.replace(i, patches=i.patches.astype(np.float64))),
    "patch_yx is": of_image(lambda i: dataclasses.replace(i, patch_yx=i.patch_yx[:-1])),
    "there is no picture for SAM-2": of_image(lambda i: dataclasses.replace(i, sam=None)),
    r"SAM-2 is uint8\[60, 90\], expected": of_image(lambda i: dataclasses.replace(i, sam=i.sam[..., 0])),
    r"SAM-2 is uint8\[60, 90, 3\], expected uint8\[256, 256, 3\]": of_image(
        lambda i: dataclasses.replace(i, sam_resized=True)
    ),
    "points are": of_prompt(points=np.zeros((1, 2), np.float32)),
    "expected finite ones": of_prompt(points=np.full((3, 2), np.nan, np.float32)),
    "known labels": of_prompt(labels=np.array([7, 3, -1], np.int32)),
    r"mask logits are \(9, 9\), the model's \(64, 64\)": of_prompt(mask=np.zeros((9, 9), np.float32)),
    "mask logits are not finite": of_prompt(mask=np.full((64, 64), np.inf, np.float32)),
    "expected contents of 31 bits": of_label(Label.query(1 << 31)),
    "a target with its content alone": of_label(Label(1, 3, (4,))),
    "a query with positives alone": of_label(Label(0, 3)),
}


@pytest.mark.parametrize("message", SPOILT)
def test_an_example_that_packing_would_refuse_is_refused_alone_by_name(message, rows, small_sam_encoder):
    config, example = small_sam_encoder.config, rows[0][0]
    check_packable(example, config)
    spoilt = SPOILT[message](example)
    with pytest.raises(InvalidExample, match=rf"^row 0a: .*{message}"):
        check_packable(spoilt, config)
    with pytest.raises(ValueError, match=message):
        pack_rows([[spoilt]], row_shape(rows), config, vision=vision_places([need_of([example])], row_shape(rows)))
