"""Pictures -> arrays: RGB images, their sizes, mask prompts; what fails is an InvalidExample that names row and file.

Every reading takes `upright`: whether the EXIF orientation is applied, so that pixels, sizes, boxes and masks are those
of the picture as viewers show it, or of the picture as stored.
"""

import io
import math
import os
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image

from virtue_jax.data.example import ImageBytes, ImageSource, InvalidExample, MaskSource
from virtue_jax.data.pixels import (
    ImagePixels,
    Unsuitable,
    check_depth,
    mask_inside,
    orientation_of,
    refuse_format,
    rgb_levels,
    turned,
    turned_size,
)

# Whose size in the header is that of the decoded picture; an icon's, for one, may be another.
_HEADER_HOLDS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "PPM", "JPEG2000")
_LATE_METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")

Value = TypeVar("Value")


def load_image(source: ImageSource, origin: str, *, upright: bool = False) -> np.ndarray:
    """Decodes an image: uint8[H, W, 3], RGB.

    Palette, grey, alpha and CMYK images become RGB as in the reference (alpha is dropped without blending); 16-bit grey
    is scaled by its range (`pixels.rgb_levels`), where the reference clips it at 255. Of several frames the first
    counts.

    Raises:
        InvalidExample: missing, unreadable, empty, damaged or truncated file, not an image, levels without a range
            (32-bit integers, floats), more pixels than Pillow's guard against decompression bombs lets through, or
            whatever else the decoder raises; names origin, path and remedy.
    """
    if isinstance(source, ImagePixels):
        return turned(source.levels, source.orientation) if upright else source.levels

    def pixels(image: Image.Image) -> np.ndarray:
        check_depth(image)
        return _as_seen(image, rgb_levels(image), upright)

    return _read(source, "image", origin, pixels)


def image_size(source: ImageSource, origin: str, *, upright: bool = False) -> tuple[int, int]:
    """(height, width) of what `load_image` gives, from the header alone where the format keeps it there.

    Raises:
        InvalidExample: as `load_image`, for what the header shows.
    """
    if isinstance(source, ImagePixels):
        return turned_size(source.levels.shape[:2], source.orientation if upright else 1)
    if isinstance(source, ImageBytes):
        return turned_size(source.size, source.orientation if upright else 1)

    def size(image: Image.Image) -> tuple[int, int]:
        check_depth(image)
        return _size_as_seen(image, upright)

    return _read(source, "image", origin, size)


def decoded_whole(encoded: bytes, origin: str) -> ImageBytes:
    """The bytes of an image, after a look at every pixel, with what the header says.

    Raises:
        InvalidExample: as `load_image`.
    """

    def header(image: Image.Image) -> ImageBytes:
        check_depth(image)
        size = rgb_levels(image).shape[:2]
        return ImageBytes(encoded, size, orientation_of(image))

    return _read(encoded, "image", origin, header)


def crop(source: ImageSource, box: tuple[float, float, float, float], origin: str, *, upright: bool = False) -> bytes:
    """The pixels of an image inside (x1, y1, x2, y2), edges rounded outwards and cut at the image's own, as PNG.

    Raises:
        InvalidExample: as `load_image`; a box that is not four finite numbers, or holds no pixel of the image.
    """
    pixels = load_image(source, origin, upright=upright)
    if len(box) != 4 or not all(math.isfinite(v) for v in box):
        raise InvalidExample(f"{origin}: box {list(box)}: expected four finite numbers [x1, y1, x2, y2]")
    x1, y1 = (max(math.floor(v), 0) for v in box[:2])
    x2, y2 = (max(math.ceil(v), 0) for v in box[2:])
    inside = pixels[y1:y2, x1:x2]
    if not inside.size:
        raise InvalidExample(
            f"{origin}: box {list(box)} holds no pixel of image {_name(source)}, which is {_size(pixels.shape[:2])}; "
            "give a box in the image's own pixels"
        )
    encoded = io.BytesIO()
    Image.fromarray(inside).save(encoded, "PNG")
    return encoded.getvalue()


def load_mask(mask: MaskSource, image_size: tuple[int, int], origin: str, *, upright: bool = False) -> np.ndarray:
    """A mask prompt as bool[H, W], True inside; `image_size` is (H, W) of the image it belongs to, as read.

    In a file, non-zero is inside: the value of a grey, 16-bit or 1-bit image, the index of a palette image, any colour
    channel of an RGB image; where there is alpha, transparent pixels are outside. Arrays may be bool or integer.

    Raises:
        InvalidExample: as `load_image`; a size other than the image's; an array that is not 2-D bool or integer;
            nothing inside.
    """
    if isinstance(mask, np.ndarray):
        inside = _array_inside(mask, origin)
    else:
        inside = _read(mask, "mask", origin, lambda image: _as_seen(image, mask_inside(image), upright))
    _check_mask_size(mask, inside.shape, image_size, origin)
    if not inside.any():
        raise InvalidExample(
            f"{origin}: {_mask_name(mask)} has no pixel inside (all zero); leave the mask out or correct it"
        )
    return inside


def check_mask(mask: MaskSource, image_size: tuple[int, int], origin: str, *, upright: bool = False) -> None:
    """What `load_mask` would say of the header, without decoding a file."""
    if isinstance(mask, np.ndarray):
        load_mask(mask, image_size, origin)
        return
    size = _read(mask, "mask", origin, lambda image: _size_as_seen(image, upright))
    _check_mask_size(mask, size, image_size, origin)


def _check_mask_size(mask: MaskSource, size: tuple, image_size: tuple[int, int], origin: str) -> None:
    if size != tuple(image_size):
        raise InvalidExample(
            f"{origin}: {_mask_name(mask)} is {_size(size)}, its image is {_size(image_size)}; "
            "give the mask in the image's own pixels"
        )


def _array_inside(mask: np.ndarray, origin: str) -> np.ndarray:
    if mask.ndim != 2 or mask.dtype.kind not in "bui":
        raise InvalidExample(f"{origin}: mask array is {mask.dtype}{list(mask.shape)}; expected bool or integer [H, W]")
    return mask != 0


def _as_seen(image: Image.Image, stored: np.ndarray, upright: bool) -> np.ndarray:
    return turned(stored, orientation_of(image)) if upright else stored


def _size_as_seen(image: Image.Image, upright: bool) -> tuple[int, int]:
    """(height, width) of an opened picture; decodes it only where its header does not tell."""
    if image.format not in _HEADER_HOLDS or (upright and image.format == "PNG" and _has_late_metadata(image.fp)):
        image.load()
    return turned_size(image.size[::-1], orientation_of(image) if upright else 1)


def _has_late_metadata(file) -> bool:
    """Whether a PNG file has metadata behind its pixels, which Pillow reads with them."""
    place = file.tell()
    file.seek(8)
    pixels = late = False
    while not late and len(head := file.read(8)) == 8:
        pixels |= head[4:] == b"IDAT"
        late = pixels and head[4:] in _LATE_METADATA
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    file.seek(place)
    return late


def _read(source, kind: str, origin: str, read: Callable[[Image.Image], Value]) -> Value:
    """`read(image)` of the opened image, with every failure turned into an InvalidExample."""
    name = f"{kind} {_name(source)}"
    _refuse_unreadable(source, name, origin)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            refuse_format(image)
            return read(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        wrong = f"is too large ({error or 'no memory for it'}); make it smaller"
    except Image.UnidentifiedImageError:
        wrong = "is not an image that Pillow can read; give a JPEG, PNG, WebP or the like"
    except Unsuitable as error:
        wrong = f"cannot be used ({error})"
    except Exception as error:  # decoders do not agree on what to raise for damaged data
        reason = " ".join(str(error).split()) or type(error).__name__
        wrong = f"is damaged or truncated ({reason}); fetch or write it again"
    raise InvalidExample(f"{origin}: {name} {wrong}")


def _refuse_unreadable(source, name: str, origin: str) -> None:
    if isinstance(source, bytes):
        empty = not source
    elif not os.path.exists(source):
        raise InvalidExample(f"{origin}: {name} does not exist; check the path and the folder it is relative to")
    elif not os.path.isfile(source):
        raise InvalidExample(f"{origin}: {name} is not a file; give the path of one image")
    elif not os.access(source, os.R_OK):
        raise InvalidExample(f"{origin}: {name} may not be read by this user; change its permissions")
    else:
        empty = os.path.getsize(source) == 0
    if empty:
        raise InvalidExample(f"{origin}: {name} is empty (0 bytes); fetch or write it again")


def _name(source) -> str:
    if isinstance(source, ImagePixels):
        return "(held in memory)"
    return f"({len(source)} encoded bytes)" if isinstance(source, bytes) else repr(os.fspath(source))


def _mask_name(mask) -> str:
    return "mask array" if isinstance(mask, np.ndarray) else f"mask {_name(mask)}"


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} (width x height)"
