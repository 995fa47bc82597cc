"""Damaged pictures of every format that Pillow writes: nothing but `InvalidExample` comes out, and soon."""

import contextlib
import functools
import io
import struct
import subprocess
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from virtue_jax.data.encoding.images import crop, image_size, load_image, load_mask
from virtue_jax.data.example import Example, InvalidExample, VisualPrompt

SECONDS = 10  # for one picture of a few kilobytes, on a slow machine


Image.init()
PASSED_ON = {"BUFR", "GRIB", "HDF5", "WMF"}  # formats that Pillow has no decoder for
KINDS = sorted(set(Image.SAVE) & (set(Image.OPEN) | {"MPO"}) - PASSED_ON)


def icon(image: Image.Image) -> bytes:
    """ICNS of one picture of 16x16; Pillow's own writer makes all sizes, up to a megapixel."""
    file = io.BytesIO()
    image.save(file, "PNG")
    png = file.getvalue()
    return struct.pack(">4sI4sI", b"icns", len(png) + 16, b"icp4", len(png) + 8) + png


@functools.cache
def pictures(kind: str) -> dict[str, bytes]:
    """{"FORMAT MODE": encoded} of each mode of a format that this Pillow writes and opens again; several frames where
    the format has them, EXIF where it has that."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 4), np.uint8)
    colour = Image.fromarray(noise[..., :3])
    exif = Image.Exif()
    exif[0x0112] = 6
    names = ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F")
    modes = {mode: colour.convert(mode) for mode in names}
    modes["I;16"] = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    encoded = {}
    if kind == "ICNS":
        return {"ICNS RGBA": icon(colour.resize((16, 16)))}
    for mode, image in modes.items():
        for name, options in {
            f"{kind} {mode}": {},
            f"{kind} {mode} frames": {"save_all": True, "append_images": [image.rotate(180), image]},
            f"{kind} {mode} exif": {"exif": exif.tobytes()},
        }.items():
            file = io.BytesIO()
            try:
                image.save(file, kind, **options)
                Image.open(io.BytesIO(file.getvalue())).close()
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # not in this mode, or not with these options
            if file.getvalue() not in encoded.values():
                encoded[name] = file.getvalue()
    return encoded


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """The bytes with some changed, the first ones most often, cut off or longer."""
    changed = np.frombuffer(data, np.uint8).copy()
    reach = len(data) if random.random() < 0.4 else min(len(data), 200)
    places = random.integers(0, reach, random.integers(1, 9))
    changed[places] = (
        random.choice([0, 255, 127, 128, 1], len(places))
        if random.random() < 0.5
        else random.integers(0, 256, len(places))
    )
    whole = changed.tobytes()
    match random.integers(0, 4):
        case 0:
            return whole[: random.integers(0, len(whole))]
        case 1:
            return whole + random.bytes(random.integers(1, 400))
        case 2:
            start, stop = np.sort(random.integers(0, len(whole), 2))
            return whole[:start] + whole[stop:]
    return whole


def check_readings(data: bytes) -> int:
    """Reads damaged bytes in every way: each gives what it promises or an `InvalidExample` of one line that begins with
    the row. Gives the number of readings that succeeded."""
    done = 0
    for upright in (False, True):
        image = readable(load_image, data, "row 1", upright=upright)
        size = readable(image_size, data, "row 1", upright=upright)
        if image is not None:
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            assert size == image.shape[:2]
            done += readable(crop, data, (1, 2, 8, 9), "row 1", upright=upright) is not None
        mask = readable(load_mask, data, (24, 32), "row 1", upright=upright)
        done += (image is not None) + (mask is not None)
    try:
        held = Image.open(io.BytesIO(data))
    except Exception:  # a program that opens it by itself meets Pillow's own
        return done
    readable(Example, "", held, None, "row 1")
    held = Image.open(io.BytesIO(data))
    with contextlib.suppress(InvalidExample):
        VisualPrompt(mask=held)
    return done


def readable(read, *arguments, **keywords):
    try:
        return read(*arguments, **keywords)
    except InvalidExample as error:
        assert str(error).startswith("row 1: ") and "\n" not in str(error)
        return None


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """No warning of a decoder, and no program started for it."""

    def refuse(*arguments, **keywords):
        raise AssertionError(f"a decoder started {arguments}")

    monkeypatch.setattr(subprocess, "check_call", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_the_formats_are_there_with_frames_and_orientation():
    assert {"PNG", "JPEG", "TIFF", "WEBP", "GIF", "ICO", "ICNS", "JPEG2000", "EPS", "BMP", "MPO"} <= set(KINDS)
    assert {"GIF L", "GIF L frames"} <= set(pictures("GIF")) and "PNG I;16 exif" in pictures("PNG")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_pictures_are_invalid_examples(kind):
    random = np.random.default_rng(0)
    assert pictures(kind)
    for data in pictures(kind).values():
        check_readings(damaged(data, random))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_damaged_in_many_ways_are_invalid_examples(kind):
    random = np.random.default_rng(1)
    read = 0
    for _ in range(50):
        for name, data in pictures(kind).items():
            start = time.monotonic()
            read += check_readings(damaged(data, random))
            assert time.monotonic() - start < SECONDS, name
    assert read or kind in ("EPS", "ICNS")  # damage that no reading minds is part of it


def test_no_program_is_started_for_a_picture():
    data = pictures("EPS")["EPS RGB"]
    message = "EPS files are not read: save it as PNG or JPEG"
    with pytest.raises(InvalidExample, match=message):
        load_image(data, "row 1")
    with pytest.raises(InvalidExample, match=message):
        load_mask(data, (24, 32), "row 1")
    with pytest.raises(InvalidExample, match=message):
        Example(images=Image.open(io.BytesIO(data)))
    with pytest.raises(InvalidExample, match=message):
        VisualPrompt(mask=Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("side", [10_000, 20_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_by_its_header(side):
    """The first is one that Pillow only warns of."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    warnings.simplefilter("error")
    for read in (load_image, image_size):
        with pytest.raises(InvalidExample, match=r"row 1: .* is too large .*make it smaller"):
            read(bomb, "row 1")
