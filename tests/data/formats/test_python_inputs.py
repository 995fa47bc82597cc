"""`parse_example`, as `Embedder.embed` calls it, takes what programs hold; every form encodes to the same arrays."""

import dataclasses
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from virtue_jax.data.example import Example, InvalidExample, VisualPrompt
from virtue_jax.data.formats.jsonl import parse_example


@pytest.fixture
def folder(tmp_path, noise):
    Image.fromarray(noise).save(tmp_path / "a.png")
    Image.fromarray(inside().astype(np.uint8)).save(tmp_path / "mask.png")
    return tmp_path


def inside() -> np.ndarray:
    mask = np.zeros((60, 90), bool)
    mask[10:30, 20:50] = True
    return mask


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def parse(record: dict, folder: Path = Path()) -> Example:
    return parse_example(record, folder, "example 0")


def assert_same(one, other) -> None:
    np.testing.assert_array_equal(one.tokens, other.tokens)
    for a, b in zip(one.images, other.images, strict=True):
        np.testing.assert_array_equal(a.patches, b.patches)
        np.testing.assert_array_equal(a.sam, b.sam)
    for field in dataclasses.fields(one.prompt):
        np.testing.assert_array_equal(getattr(one.prompt, field.name), getattr(other.prompt, field.name))


def test_every_form_of_an_image_is_the_same_image(folder, noise, small_sam_encoder):
    import jax.numpy as jnp
    import torch

    class Somewhere(os.PathLike):
        def __fspath__(self):
            return str(folder / "a.png")

    data = (folder / "a.png").read_bytes()
    forms = [
        *(folder / "a.png", Somewhere(), [folder / "a.png"], (str(folder / "a.png"),), "a.png"),
        *(data, bytearray(data), memoryview(data)),
        *(Image.open(folder / "a.png"), Image.fromarray(noise), Image.fromarray(noise).convert("RGBA")),
        *(noise, noise[:, ::-1][:, ::-1], np.asfortranarray(noise), jnp.asarray(noise), torch.from_numpy(noise.copy())),
    ]
    expected = small_sam_encoder.encode(parse({"image": str(folder / "a.png"), "text": "dog", "box": [1, 2, 30, 40]}))
    for form in forms:
        example = parse({"image": form, "text": "dog", "box": [1, 2, 30, 40]}, folder)
        assert_same(small_sam_encoder.encode(example), expected)


def test_every_form_of_a_mask_is_the_same_mask(folder, small_sam_encoder):
    import jax.numpy as jnp

    forms = [
        *(folder / "mask.png", str(folder / "mask.png"), (folder / "mask.png").read_bytes(), "mask.png"),
        *(inside(), inside().astype(np.uint8) * 255, inside().astype(np.int64), jnp.asarray(inside())),
        *(Image.fromarray(inside()), Image.fromarray(inside().astype(np.uint8)), Image.open(folder / "mask.png")),
        bytearray(encoded(Image.fromarray(inside()))),
    ]
    expected = small_sam_encoder.encode(parse({"image": folder / "a.png", "text": "dog", "mask": forms[0]}))
    for form in forms:
        example = parse({"image": "a.png", "text": "dog", "mask": form}, folder)
        assert_same(small_sam_encoder.encode(example), expected)


def test_every_form_of_numbers_is_the_same_prompt(folder):
    import jax.numpy as jnp
    import torch

    box, points = [1, 2, 30, 40], [[5, 6, 1], [7, 8, 0]]
    expected = parse({"image": "a.png", "box": box, "points": points}).prompt
    for array in (
        tuple,
        np.array,
        jnp.array,
        torch.tensor,
        lambda v: np.array(v, np.uint16),
        lambda v: np.array(v, object),
    ):
        assert parse({"image": "a.png", "box": array(box), "points": array(points)}).prompt == expected
        assert VisualPrompt(array(box), array(points)) == expected
    scalars = [np.int64(1), jnp.int32(2), torch.tensor(30), np.float32(40)]
    assert parse({"image": "a.png", "box": scalars, "points": [np.array(p) for p in points]}).prompt == expected
    assert parse({"image": "a.png", "sam_point": np.array([5, 6])}).prompt.points == ((5, 6, 1),)
    kept = parse({"image": "a.png", "box": np.array([1, 2, 3, 4.5])}).prompt.box
    assert kept == (1.0, 2.0, 3.0, 4.5) and all(type(value) is float for value in kept)
    assert all(type(value) is int for value in expected.box)


def test_none_is_absent():
    keys = ("image", "box", "points", "mask", "sam_box", "sam_point")
    assert parse({"text": "a dog", **dict.fromkeys(keys)}) == parse({"text": "a dog"})
    assert parse({"text": None, "image": "a.png"}) == parse({"image": "a.png"})
    assert Example(None, "a.png") == Example("", ("a.png",)) and Example("a", None) == Example("a")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": np.zeros((4, 4, 3), np.float32)}, r"image: an array float32\[4, 4, 3\] is no image: expected uint8"),
        ({"image": np.zeros((3, 40, 40), np.uint8)}, "channels last"),
        ({"image": np.zeros((0, 4, 3), np.uint8)}, "is no image"),
        ({"image": object()}, "a object is no image: expected a path, encoded bytes, a PIL image or a uint8 array"),
        ({"image": [None]}, "image is null; expected a path"),
        ({"image": Image.new("F", (4, 4))}, "32-bit float pixels have no value that means white"),
        ({"image": b""}, None),
        ({"image": "a.png", "mask": np.zeros((4, 4, 4))}, None),
        ({"image": "a.png", "mask": object()}, "mask is a object; expected a path, encoded bytes, a PIL image or bool"),
        ({"image": "a.png", "mask": [[0, 1]]}, "expected a path"),
        ({"image": "a.png", "box": np.zeros((2, 2))}, "expected a list of 4 numbers"),
        ({"image": "a.png", "box": [1, 2, 10**400, 4]}, "expected four finite numbers"),
        ({"image": "a.png", "box": [0, 0, float("inf"), 4]}, "expected four finite numbers"),
        ({"text": b"bytes"}, "expected a string"),
        ({"text": "a", 1: 2}, r"unknown keys \['1'\]"),
        (["a.png"], "expected an object with keys"),
    ],
)
def test_what_is_none_of_these_is_refused_with_what_is_expected(folder, small_sam_encoder, record, message):
    with pytest.raises(InvalidExample, match=message) as error:
        small_sam_encoder.encode(parse(record, folder))
    assert str(error.value).startswith("example 0: ")


def test_a_pil_image_that_cannot_be_decoded_is_named(folder, noise):
    (folder / "cut.png").write_bytes(encoded(Image.fromarray(noise))[:2000])
    with pytest.raises(InvalidExample, match=r"example 0: image: .*truncated"):
        parse({"image": Image.open(folder / "cut.png")})
    closed = Image.open(folder / "a.png")
    closed.close()
    with pytest.raises(InvalidExample, match="example 0: image: "):
        parse({"image": closed})
