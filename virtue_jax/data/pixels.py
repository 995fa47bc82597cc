"""What a picture's pixels mean: its levels as 8-bit RGB, its orientation, its inside as a mask; and pixels in memory.

Works on opened pictures and arrays; `data/encoding/images.py` opens files and says which row a fault belongs to.
"""

import hashlib

import numpy as np
from PIL import Image

_ORIENTATION = 0x0112  # EXIF tag
_EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
_WITH_ALPHA = ("LA", "PA", "RGBA", "La", "RGBa")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_PHOTOMETRIC, _BITS_PER_SAMPLE = 262, 258  # TIFF tags
# Not pictures to Pillow alone: EPS starts Ghostscript, IPTC opens whatever it holds, the rest have no decoder.
_REFUSED_FORMATS = ("EPS", "IPTC", "WMF", "BUFR", "GRIB", "HDF5", "MPEG")
_REMEDY = "scale its values to 0..255 and save it with 8 bits"


class Unsuitable(ValueError):
    """A whole picture that is none for a model: the message says why and what to do."""


class ImagePixels:
    """A picture that a program holds, known by its contents: equal pixels are the same image.

    levels: uint8[H, W, 3], RGB, read-only, as stored. orientation: its EXIF orientation, 1 = upright.
    """

    def __init__(self, levels: np.ndarray, orientation: int = 1):
        self.levels = np.array(levels, order="C")
        self.levels.flags.writeable = False
        self.orientation = orientation
        digest = hashlib.sha256(f"{levels.shape}, {orientation}:".encode())
        digest.update(self.levels.data)
        self.digest = digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImagePixels) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"ImagePixels({self.levels.shape[1]}x{self.levels.shape[0]}, {self.digest[:12]})"


def image_pixels(value: object) -> ImagePixels:
    """The pixels of a PIL image, or of an array uint8[H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (alpha is dropped).

    Raises:
        ValueError: another shape or dtype, no pixel, a picture that cannot be decoded or is deeper than 8 bits.
    """
    if isinstance(value, Image.Image):
        if not value.width or not value.height:
            raise ValueError(f"a PIL image of {value.width}x{value.height} pixels holds none")
        refuse_format(value)
        check_depth(value)
        levels = rgb_levels(value)  # decodes, which may bring the orientation
        return ImagePixels(levels, orientation_of(value))
    if not hasattr(value, "__array__"):
        raise ValueError(
            f"a {type(value).__name__} is no image: expected a path, encoded bytes, a PIL image or a uint8 array"
        )
    levels = np.asarray(value)
    colours = levels.shape[2] if levels.ndim == 3 else 1
    if levels.dtype != np.uint8 or levels.ndim not in (2, 3) or colours not in (1, 3, 4) or not levels.size:
        raise ValueError(
            f"an array {levels.dtype}{list(levels.shape)} is no image: expected uint8 [H, W, 3] with values 0..255, "
            "channels last"
        )
    levels = levels.reshape(*levels.shape[:2], colours)
    return ImagePixels(np.repeat(levels, 3, axis=2) if colours == 1 else levels[..., :3])


def refuse_format(image: Image.Image) -> None:
    """Refuses an opened picture whose decoder is another program or none.

    Raises:
        Unsuitable: names the format and what to do.
    """
    if image.format in _REFUSED_FORMATS:
        raise Unsuitable(f"{image.format} files are not read: save it as PNG or JPEG")


def check_depth(image: Image.Image) -> None:
    """Refuses, by the header alone, a picture whose levels do not say what is white, or that has no RGB form.

    Raises:
        Unsuitable: says which and what to do.
    """
    if image.mode in _EIGHT_BITS or _white(image) is not None:
        return
    if image.mode[0] in "IF":
        kind = {"I": "32-bit integer", "F": "32-bit float"}.get(image.mode, f"{image.mode} ({image.format})")
        raise Unsuitable(f"{kind} pixels have no value that means white: {_REMEDY}")
    raise Unsuitable(f"colours of mode {image.mode} have no plain RGB: save it as RGB")


def rgb_levels(image: Image.Image) -> np.ndarray:
    """uint8[H, W, 3] of a picture that passes `check_depth`, in the pixels as stored.

    Alpha is dropped without blending; palette, grey, CMYK as Pillow's `convert("RGB")` has them. 16-bit grey is scaled
    by its whole range, 0..65535 to 0..255, and rounded to the nearest level (12-bit TIFF: by 0..4095); colours of 16
    bits Pillow reduces to their high byte itself, within a level of that.
    """
    image.load()
    white = _white(image)
    if white is None:
        return np.asarray(image.convert("RGB"))
    values = np.asarray(image).astype(np.int64)
    grey = (np.clip(values, 0, white) * (2 * 255) + white) // (2 * white)
    if _black_is_white(image):
        grey = 255 - grey
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def _white(image: Image.Image) -> int | None:
    """The value that means white in a grey picture deeper than 8 bits; None: not such a picture, or not known."""
    if image.mode == "I" and image.format == "PPM":  # Pillow scales a PGM's levels to 16 bits, in this mode
        return 65535
    if image.mode not in _SIXTEEN_BITS or image.format == "FITS":  # FITS: signed, with a scale and zero of its own
        return None
    return 4095 if image.format == "TIFF" and image.tag_v2.get(_BITS_PER_SAMPLE) == (12,) else 65535


def _black_is_white(image: Image.Image) -> bool:
    """A TIFF of 16 bits whose 0 is white, which Pillow does not invert as it does one of 8."""
    return image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0


def mask_inside(image: Image.Image) -> np.ndarray:
    """bool[H, W]: where a mask picture is not zero, as `images.load_mask` says."""
    image.load()
    values = np.asarray(image.convert("RGB") if image.mode in ("CMYK", "YCbCr", "HSV") else image)
    if values.ndim == 2:
        return (values != 0) & (values == values)  # NaN is no inside
    if image.mode in _WITH_ALPHA:
        return (values[..., :-1] != 0).any(-1) & (values[..., -1] != 0)
    return (values != 0).any(-1)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of a picture, 1 to 8; 1 where it says none that can be read, as viewers take it.

    A TIFF's is 1: Pillow turns its pixels by itself. A PNG may have it behind its pixels, where it is read with them.
    """
    if image.format == "TIFF":
        return 1
    try:
        orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)  # PNG's own decodes the picture first
    except Exception:  # damaged EXIF has an exception for every kind of damage
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W, ...] as stored -> as seen: mirrored, turned or both, as the EXIF orientation says."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(height, width) as seen, of (height, width) as stored."""
    return size[::-1] if orientation >= 5 else size
