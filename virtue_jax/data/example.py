"""What a person gives: an image or several, a text, a visual prompt. Checked when made, before any file is read."""

import os
from dataclasses import dataclass, field
from numbers import Integral, Real

import numpy as np
from PIL import Image

from virtue_jax.data.pixels import ImagePixels, image_pixels, mask_inside, orientation_of, refuse_format, turned

POSITIVE, NEGATIVE = 1, 0
IMAGE_MARKER = "<|image_1|>"  # where the image belongs in a text, whatever markup a behaviour has for it

# What images and masks are held as: a file's path, the encoded bytes of a file, pixels.
ImageSource = str | os.PathLike | bytes | ImagePixels
MaskSource = str | os.PathLike | bytes | np.ndarray


class InvalidExample(ValueError):
    """An example that cannot be embedded; the message names the row, what is wrong and what to do."""


@dataclass(frozen=True)
class VisualPrompt:
    """A box, points and a mask on the first image, in any mixture.

    box: (x1, y1, x2, y2). points: (x, y, label) each, label 1 positive or 0 negative. Both may be lists, tuples, arrays
    or tensors of any library that has `tolist`. mask: an image file's path or bytes, or a PIL image (non-zero = inside;
    a PIL image's EXIF orientation is applied), or bool or integer [H, W]. frame: "image" = coordinates in the image's
    own pixels, fractions allowed; "sam" = in SAM's 1024-pixel frame, whatever `Compat.box_frame` says. Masks are always
    in the image's own pixels.

    Raises:
        InvalidExample: names the value and what was expected.
    """

    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float, int], ...] = ()
    mask: MaskSource | None = None
    frame: str = "image"

    def __post_init__(self):
        if self.frame not in ("image", "sam"):
            raise InvalidExample(f"prompt frame {self.frame!r}: expected 'image' or 'sam'")
        points = plain_numbers(self.points) or ()
        points = [tuple(point) if isinstance(point, list) else point for point in points]
        object.__setattr__(self, "points", tuple(points))
        if self.box is not None:
            box = plain_numbers(self.box)
            object.__setattr__(self, "box", tuple(box) if isinstance(box, list) else box)
            _check_box(self.box)
        object.__setattr__(self, "mask", _mask_source(self.mask))
        if self.box is None and not self.points and self.mask is None:
            raise InvalidExample("visual prompt with neither box, points nor mask; leave the prompt out instead")
        for point in self.points:
            if not _are_finite(point, 3) or point[2] not in (POSITIVE, NEGATIVE):
                raise InvalidExample(f"point {point!r}: expected [x, y, label] with label 1 (positive) or 0 (negative)")


def plain_numbers(value: object, depth: int = 2) -> object:
    """Lists of Python's numbers for lists, tuples, arrays and tensors, down to `depth`; what is neither stays as it is.

    Raises:
        InvalidExample: a tensor that cannot be listed.
    """
    if not isinstance(value, list | tuple) and callable(getattr(value, "tolist", None)):
        try:
            value = value.tolist()
        except Exception as error:  # other libraries' arrays may be freed, or on devices that are gone
            raise InvalidExample(f"{type(value).__name__} cannot be read ({error}); give a list of numbers") from error
    if isinstance(value, list | tuple):
        return [plain_numbers(entry, depth - 1) for entry in value] if depth else value
    if isinstance(value, bool | int | float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _are_finite(values: object, count: int) -> bool:
    if not isinstance(values, tuple) or len(values) != count:
        return False
    numbers = all(isinstance(value, int | float) for value in values)
    return numbers and all(abs(value) < 1e15 for value in values)  # neither NaN nor what float64 cannot tell apart


def _check_box(box: tuple) -> None:
    if not _are_finite(box, 4):
        raise InvalidExample(f"box {box!r}: expected four finite numbers [x1, y1, x2, y2]")
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        raise InvalidExample(
            f"box {list(box)} is inverted or empty: expected [x1, y1, x2, y2] with x1 < x2 and y1 < y2"
        )


def _mask_source(mask: object) -> MaskSource | None:
    if mask is None or isinstance(mask, str | os.PathLike | bytes | np.ndarray):
        return mask
    if isinstance(mask, bytearray | memoryview):
        return bytes(mask)
    try:
        if isinstance(mask, Image.Image):
            refuse_format(mask)
            return turned(mask_inside(mask), orientation_of(mask))
        if hasattr(mask, "__array__"):
            return np.asarray(mask)
    except Exception as error:  # a lazily opened file may hold anything, and so may other libraries' arrays
        raise InvalidExample(f"mask {type(mask).__name__} cannot be read ({error}); give bool [H, W]") from error
    raise InvalidExample(f"mask is a {type(mask).__name__}; expected a path, encoded bytes, a PIL image or bool [H, W]")


class ImageBytes(bytes):
    """The encoded bytes of an image whose header is known without reading it.

    size: (height, width) in pixels, as stored. orientation: EXIF's, 1 = upright.
    """

    size: tuple[int, int]
    orientation: int

    def __new__(cls, encoded: bytes, size: tuple[int, int], orientation: int = 1):
        image = super().__new__(cls, encoded)
        image.size, image.orientation = size, orientation
        return image

    def __getnewargs__(self) -> tuple:
        return bytes(self), self.size, self.orientation


@dataclass(frozen=True)
class Example:
    """One thing to embed: images, a text, and a prompt that belongs to the first image.

    A text that contains `<|image_pad|>` is taken verbatim; one with `<|image_1|>`, the published data sets' marker,
    gets the compat's markup there; any other gets the compat's template. images: paths, encoded bytes, PIL images or
    uint8 arrays (`pixels.image_pixels`), one or a list; held as `ImageSource`s. origin names file and row in errors.
    upright: whether the EXIF orientation of images and mask files is applied, so that the prompt is
    in the pixels that viewers show; the published sets, whose boxes are in the pixels as stored, say False. A behaviour
    may leave it out (`Compat.exif_orientation`).

    Raises:
        InvalidExample: names origin, value and what was expected.
    """

    text: str = ""
    images: tuple[ImageSource, ...] = ()
    prompt: VisualPrompt | None = None
    origin: str = field(default="example", compare=False)
    upright: bool = True

    def __post_init__(self):
        object.__setattr__(self, "text", _checked_text("" if self.text is None else self.text, self.origin))
        several = () if self.images is None else self.images
        several = several if isinstance(several, list | tuple) else (several,)
        object.__setattr__(self, "images", tuple(_image_source(image, self.origin) for image in several))
        if not self.text and not self.images:
            raise InvalidExample(f"{self.origin}: neither text nor image; give at least one of them")
        if self.prompt is not None and not self.images:
            raise InvalidExample(f"{self.origin}: a visual prompt without an image; give the image it points into")


def _checked_text(text: object, origin: str) -> str:
    if not isinstance(text, str):
        raise InvalidExample(f"{origin}: text is a {type(text).__name__}, {str(text)[:80]!r}; expected a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(error.start - 20, 0) : error.start + 5]
        raise InvalidExample(
            f"{origin}: character {error.start + 1} of the text is {text[error.start]!a} (in {around!a}), half of a "
            "surrogate pair: it was cut in two or decoded wrongly; write the whole character, an emoji most often, or "
            "remove it"
        ) from error
    return text


def _image_source(image: object, origin: str) -> ImageSource:
    if isinstance(image, str | os.PathLike | bytes | ImagePixels):
        return image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    try:
        return image_pixels(image)
    except Exception as error:  # a lazily opened PIL image may raise whatever its decoder does
        raise InvalidExample(f"{origin}: image: {' '.join(str(error).split()) or type(error).__name__}") from error


@dataclass(frozen=True)
class TrainingPair:
    """A query with its positive targets and any hard negatives. positives: at least one; a single Example may be given
    in place of a tuple of one."""

    query: Example
    positives: tuple[Example, ...]
    negatives: tuple[Example, ...] = ()

    def __post_init__(self):
        if isinstance(self.positives, Example):
            object.__setattr__(self, "positives", (self.positives,))
        if not self.positives:
            raise InvalidExample(f"{self.query.origin}: no positive target; give at least one")

    @property
    def positive(self) -> Example:
        """The first positive."""
        return self.positives[0]
