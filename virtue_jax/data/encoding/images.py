"""Image files and bytes -> arrays: RGB images and mask prompts; whatever fails is an error that names row and file."""

import io
import math
import os
import struct
import zlib

import numpy as np
from PIL import Image

from virtue_jax.data.example import InvalidExample

# What Pillow's decoders raise on damaged files; the format plugins do not agree on one exception.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, OverflowError, IndexError)


def load_image(source: str | os.PathLike | bytes, origin: str) -> np.ndarray:
    """Decodes an image: uint8[H, W, 3], RGB.

    Palette, grey, alpha, CMYK and 16-bit images go through Pillow's `convert("RGB")`, as in the reference: alpha is
    dropped without blending, and a 16-bit grey image is clipped at 255, not rescaled. EXIF orientation is not applied
    (the reference does not either), so prompts are in the pixels as stored. Of several frames the first counts.

    Raises:
        InvalidExample: missing, unreadable, empty, damaged or truncated file, not an image, or more pixels than
            Pillow's guard against decompression bombs lets through; names origin, path and remedy.
    """
    return np.asarray(_decode(source, "image", origin, lambda image: image.convert("RGB")))


def crop(source: str | os.PathLike | bytes, box: tuple[float, float, float, float], origin: str) -> bytes:
    """The pixels of an image inside (x1, y1, x2, y2), edges rounded outwards and cut at the image's own, as PNG.

    Raises:
        InvalidExample: as `load_image`; a box that holds no pixel of the image.
    """
    pixels = load_image(source, origin)
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


def load_mask(mask: str | os.PathLike | np.ndarray, image_size: tuple[int, int], origin: str) -> np.ndarray:
    """A mask prompt as bool[H, W], True inside; `image_size` is (H, W) of the image it belongs to.

    In a file, non-zero is inside: the value of a grey, 16-bit or 1-bit image, the index of a palette image, any colour
    channel of an RGB image; where there is alpha, transparent pixels are outside. Arrays may be bool or integer.

    Raises:
        InvalidExample: as `load_image`; a size other than the image's; an array that is not 2-D bool or integer;
            nothing inside.
    """
    name = "mask array" if isinstance(mask, np.ndarray) else f"mask {_name(mask)}"
    inside = _array_inside(mask, origin) if isinstance(mask, np.ndarray) else _file_inside(mask, origin)
    if inside.shape != tuple(image_size):
        raise InvalidExample(
            f"{origin}: {name} is {_size(inside.shape)}, its image is {_size(image_size)}; "
            "give the mask in the image's own pixels"
        )
    if not inside.any():
        raise InvalidExample(f"{origin}: {name} has no pixel inside (all zero); leave the mask out or correct it")
    return inside


def _array_inside(mask: np.ndarray, origin: str) -> np.ndarray:
    if mask.ndim != 2 or mask.dtype.kind not in "bui":
        raise InvalidExample(f"{origin}: mask array is {mask.dtype}{list(mask.shape)}; expected bool or integer [H, W]")
    return mask != 0


def _file_inside(path: str | os.PathLike, origin: str) -> np.ndarray:
    def inside(image: Image.Image) -> np.ndarray:
        values = np.asarray(image)
        if values.ndim == 2:
            return values != 0
        if image.mode in ("LA", "RGBA", "PA", "La", "RGBa"):
            return (values[..., :-1] != 0).any(-1) & (values[..., -1] != 0)
        return (values != 0).any(-1)

    return _decode(path, "mask", origin, inside)


def _decode(source, kind: str, origin: str, read):
    """`read(image)` of the opened image, with every failure turned into an InvalidExample."""
    name = f"{kind} {_name(source)}"
    _refuse_unreadable(source, name, origin)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            return read(image)
    except Image.DecompressionBombError as error:
        raise InvalidExample(f"{origin}: {name} is too large ({error}); make it smaller") from error
    except Image.UnidentifiedImageError as error:
        raise InvalidExample(
            f"{origin}: {name} is not an image that Pillow can read; give a JPEG, PNG, WebP or the like"
        ) from error
    except _DECODE_ERRORS as error:
        raise InvalidExample(f"{origin}: {name} is damaged or truncated ({error}); fetch or write it again") from error


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
    return f"({len(source)} encoded bytes)" if isinstance(source, bytes) else repr(os.fspath(source))


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} (width x height)"
