"""`check_example` finds, without decoding a pixel, what `encode` would find in headers, prompts and texts."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageFile

from virtue_jax.config import Compat
from virtue_jax.data.encoding.check import check_example
from virtue_jax.data.encoding.encode import ExampleEncoder
from virtue_jax.data.example import Example, InvalidExample, VisualPrompt


@pytest.fixture
def pictures(noise, tmp_path):
    """a.png (90x60), its mask, a long one, and turned.jpg, seen as 60x90."""
    Image.fromarray(noise).save(tmp_path / "a.png")
    Image.fromarray(np.ones((60, 90), np.uint8)).save(tmp_path / "mask.png")
    Image.fromarray(noise[:2]).resize((900, 2)).save(tmp_path / "long.png")
    Image.fromarray(np.zeros((60, 90), np.float32)).save(tmp_path / "float.tif")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(tmp_path / "turned.jpg", exif=exif)
    return tmp_path


@pytest.fixture
def no_pixels(monkeypatch):
    def refuse(self):
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)


def example(folder, name, text="the dog", **prompt) -> Example:
    return Example(text, (folder / name,), VisualPrompt(**prompt) if prompt else None, "in.jsonl:3")


def test_good_examples_pass_without_a_pixel(pictures, small_sam_encoder, no_pixels):
    check_example(example(pictures, "a.png", box=(1, 2, 80, 50), mask=pictures / "mask.png"), small_sam_encoder)
    check_example(example(pictures, "turned.jpg", box=(1, 2, 50, 80)), small_sam_encoder)
    check_example(Example("two <|image_pad|> and <|image_pad|>", (pictures / "a.png",) * 2), small_sam_encoder)
    check_example(Example("text alone"), small_sam_encoder)


@pytest.mark.parametrize(
    ("name", "rest", "message"),
    [
        ("absent.png", {}, "does not exist"),
        ("long.png", {}, "more than 200 times"),
        ("float.tif", {}, "32-bit float pixels have no value that means white"),
        ("a.png", {"box": (0, 0, 80, 70)}, "outside the image of 90x60"),
        ("turned.jpg", {"box": (0, 0, 80, 50)}, "outside the image of 60x90"),
        ("a.png", {"box": (0.1, 0.1, 0.5, 0.6)}, "less than a pixel wide or high .* not as fractions"),
        ("a.png", {"points": ((1, 61, 1),)}, "outside the image"),
        ("a.png", {"mask": np.ones((90, 60), bool)}, "give the mask in the image's own pixels"),
        ("turned.jpg", {"mask": "mask.png"}, "is 90x60 .* its image is 60x90"),
        ("a.png", {"text": "<|image_pad|> <|image_pad|>"}, "2 <|image_pad|> in the text for 1 images"),
    ],
)
def test_what_a_header_shows_is_found_as_encode_finds_it(pictures, small_sam_encoder, name, rest, message):
    rest = rest | ({"mask": pictures / rest["mask"]} if isinstance(rest.get("mask"), str) else {})
    bad = example(pictures, name, **rest)
    with pytest.raises(InvalidExample, match=message.replace("|", r"\|")) as seen:
        check_example(bad, small_sam_encoder)
    assert str(seen.value).startswith("in.jsonl:3")
    with pytest.raises(InvalidExample) as encoded:
        small_sam_encoder.encode(bad)
    assert str(encoded.value) == str(seen.value)


def test_the_behaviour_decides_how_a_picture_is_read(pictures, small_sam_encoder):
    released = ExampleEncoder(small_sam_encoder.config, small_sam_encoder.tokenizer, Compat.released())
    wide, tall = (example(pictures, "turned.jpg", box=box) for box in ((0, 0, 80, 50), (0, 0, 50, 80)))
    check_example(wide, released)
    check_example(dataclasses.replace(wide, upright=False), small_sam_encoder)
    for encoder, other in ((released, tall), (small_sam_encoder, wide)):
        with pytest.raises(InvalidExample, match="outside"):
            check_example(other, encoder)
