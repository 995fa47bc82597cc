"""Levels deeper than 8 bits, orientation, pictures in memory: never silently wrong."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from virtue_jax.data.encoding.encode import image_key
from virtue_jax.data.encoding.images import image_size, load_image, load_mask
from virtue_jax.data.example import Example, ImageBytes, InvalidExample, VisualPrompt
from virtue_jax.data.pixels import ImagePixels, turned

CASES = Path(__file__).parents[2] / "golden" / "cases"
ORIENTATIONS = range(1, 9)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def oriented(image: Image.Image, orientation: int, kind: str = "PNG", **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image, kind, exif=exif.tobytes(), **options)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "IM", "JPEG2000"])
def test_16_bit_grey_is_scaled_by_its_range(kind):
    values = np.linspace(0, 65535, 640).round().astype(np.uint16).reshape(20, 32)
    data = saved(Image.fromarray(values), kind)
    expected = np.rint(values.astype(np.float64) * 255 / 65535)[..., None].repeat(3, 2)
    np.testing.assert_array_equal(load_image(data, "row"), expected)
    assert image_size(data, "row") == (20, 32)
    held = Example(images=Image.open(io.BytesIO(data))).images[0]
    np.testing.assert_array_equal(load_image(held, "row"), expected)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_colours_and_alpha_keep_their_range(channels):
    """Written by hand: Pillow opens them, and reduces them to the high byte, but writes none."""

    values = np.random.default_rng(0).integers(0, 65536, (5, 7, channels), np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 7, 5, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )
    colours = values[..., :1].repeat(3, 2) if channels == 2 else values[..., :3]
    assert np.abs(load_image(data, "row") - colours * (255 / 65535)).max() < 1


@pytest.mark.parametrize("invert", [False, True])
def test_a_tiffs_white_is_what_its_header_says(invert):
    values = np.array([[0, 1000, 65535]], np.uint16)
    data = saved(Image.fromarray(values), "TIFF", tiffinfo={262: 0 if invert else 1})
    grey = load_image(data, "row")[0, :, 0].tolist()
    assert grey == ([255, 251, 0] if invert else [0, 4, 255])


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (np.ones((4, 6), np.float32), "TIFF", "32-bit float pixels have no value that means white"),
        (np.ones((4, 6), np.float32), "PPM", "32-bit float"),
        (np.ones((4, 6), np.int32), "TIFF", "32-bit integer pixels have no value that means white"),
    ],
)
def test_levels_without_a_range_are_refused_with_a_remedy(values, kind, message):
    data = saved(Image.fromarray(values), kind)
    for read in (load_image, image_size, lambda data, row: Example("", Image.open(io.BytesIO(data)), None, row)):
        with pytest.raises(InvalidExample, match=f"row 3: .*{message}.*scale its values to 0..255"):
            read(data, "row 3")
    assert load_mask(data, (4, 6), "row").all()  # a mask has no levels


def test_colours_without_a_plain_rgb_are_refused():
    with pytest.raises(InvalidExample, match="mode LAB have no plain RGB: save it as RGB"):
        load_image(saved(Image.new("LAB", (4, 4)), "TIFF"), "row")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_upright_is_what_pillow_shows(noise, kind, orientation):
    data = oriented(Image.fromarray(noise), orientation, kind)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    stored = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for upright, expected in ((True, shown), (False, stored)):
        np.testing.assert_array_equal(load_image(data, "row", upright=upright), expected)
        assert image_size(data, "row", upright=upright) == expected.shape[:2]
        held = Example(images=Image.open(io.BytesIO(data))).images[0]
        assert image_size(held, "row", upright=upright) == expected.shape[:2]
        np.testing.assert_array_equal(load_image(held, "row", upright=upright), expected)


def test_orientation_behind_a_pngs_pixels_is_seen_too(noise):
    """As some tools add it to a file that is there."""
    data = oriented(Image.fromarray(noise), 6)
    start = data.index(b"eXIf") - 4
    chunk = data[start : start + 12 + int.from_bytes(data[start : start + 4], "big")]
    moved = data.replace(chunk, b"").replace(b"\0\0\0\0IEND", chunk + b"\0\0\0\0IEND")
    assert moved.index(b"eXIf") > moved.index(b"IDAT")
    assert image_size(moved, "row", upright=True) == (90, 60) == load_image(moved, "row", upright=True).shape[:2]
    assert image_size(moved, "row") == (60, 90)


def test_exif_that_cannot_be_read_turns_nothing(noise):
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", oriented(Image.fromarray(noise), 9)[40:60]):
        data = saved(Image.fromarray(noise), "PNG", exif=exif)
        np.testing.assert_array_equal(load_image(data, "row", upright=True), noise)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_masks_own_orientation_is_applied_as_its_images_is(orientation):
    inside = np.zeros((60, 90), bool)
    inside[:5, :7] = True
    data = oriented(Image.fromarray(inside.astype(np.uint8)), orientation)
    seen = turned(inside, orientation)
    np.testing.assert_array_equal(load_mask(data, seen.shape, "row", upright=True), seen)
    np.testing.assert_array_equal(load_mask(data, (60, 90), "row"), inside)
    np.testing.assert_array_equal(VisualPrompt(mask=Image.open(io.BytesIO(data))).mask, seen)


def test_upright_and_stored_readings_are_different_images(noise):
    data = oriented(Image.fromarray(noise), 6)
    for source in (data, "a.png", ImagePixels(noise), ImageBytes(data, (60, 90), 6)):
        assert image_key(source) != image_key(source, upright=True)
    assert image_size(ImageBytes(data, (60, 90), 6), "row", upright=True) == (90, 60)


def test_a_turned_photo_and_its_upright_copy_encode_alike(small_sam_encoder):
    photo, upright = (
        small_sam_encoder.encode(Example("the dog", CASES / "exif_orientation" / name, VisualPrompt((10, 20, 50, 60))))
        for name in ("photo.jpg", "upright.png")
    )
    assert photo.images[0].size == upright.images[0].size
    np.testing.assert_array_equal(photo.prompt.points, upright.prompt.points)
    np.testing.assert_array_equal(photo.tokens, upright.tokens)
    assert np.abs(photo.images[0].patches.astype(int) - upright.images[0].patches).mean() < 12  # JPEG's losses


def test_pixels_in_memory_are_known_by_their_contents(noise):
    one, other = (Example(images=[values]).images[0] for values in (noise, Image.fromarray(noise)))
    assert one == other and image_key(one) == image_key(other) and len({one, other}) == 1
    assert one != Example(images=noise[:5]).images[0]
    spoilt = noise.copy()
    kept = Example(images=spoilt).images[0]
    spoilt[:] = 0
    np.testing.assert_array_equal(kept.levels, noise)
    grey = Example(images=noise[..., 0]).images[0]
    np.testing.assert_array_equal(load_image(grey, "row"), noise[..., :1].repeat(3, 2))
    alpha = Example(images=np.dstack([noise, noise[..., :1]])).images[0]
    np.testing.assert_array_equal(load_image(alpha, "row"), noise)
