"""What a person gives: an image or several, a text, a visual prompt. Checked when made, before any pixel is read."""

import math
import os
import re
from dataclasses import dataclass, field

import numpy as np

POSITIVE, NEGATIVE = 1, 0
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class InvalidExample(ValueError):
    """An example that cannot be embedded; the message names the row, what is wrong and what to do."""


@dataclass(frozen=True)
class VisualPrompt:
    """A box, points and a mask on the first image, in any mixture.

    box: (x1, y1, x2, y2). points: (x, y, label) each, label 1 positive or 0 negative. mask: path of an image file
    (non-zero = inside) or bool[H, W]. frame: "image" = coordinates in the image's own pixels, fractions allowed;
    "sam" = in SAM's 1024-pixel frame, whatever `Compat.box_frame` says. Masks are always in the image's own pixels.
    """

    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float, int], ...] = ()
    mask: str | np.ndarray | None = None
    frame: str = "image"

    def __post_init__(self):
        if self.frame not in ("image", "sam"):
            raise InvalidExample(f"prompt frame {self.frame!r}: expected 'image' or 'sam'")
        if self.box is None and not self.points and self.mask is None:
            raise InvalidExample("visual prompt with neither box, points nor mask; leave the prompt out instead")
        if self.box is not None:
            _check_box(self.box)
        for point in self.points:
            if len(point) != 3 or not all(math.isfinite(v) for v in point) or point[2] not in (POSITIVE, NEGATIVE):
                raise InvalidExample(f"point {point!r}: expected [x, y, label] with label 1 (positive) or 0 (negative)")


def _check_box(box: tuple) -> None:
    if len(box) != 4 or not all(math.isfinite(v) for v in box):
        raise InvalidExample(f"box {box!r}: expected four finite numbers [x1, y1, x2, y2]")
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        raise InvalidExample(
            f"box {list(box)} is inverted or empty: expected [x1, y1, x2, y2] with x1 < x2 and y1 < y2"
        )


class ImageBytes(bytes):
    """The encoded bytes of an image whose `size`, (height, width) in pixels, is known without reading its header."""

    size: tuple[int, int]

    def __new__(cls, encoded: bytes, size: tuple[int, int]):
        image = super().__new__(cls, encoded)
        image.size = size
        return image

    def __getnewargs__(self) -> tuple:
        return bytes(self), self.size


@dataclass(frozen=True)
class Example:
    """One thing to embed: images (paths or encoded bytes), a text, and a prompt that belongs to the first image.

    A text that contains `<|image_pad|>` is taken verbatim, any other gets the compat's template.
    `origin` names file and row in errors.
    """

    text: str = ""
    images: tuple[str | os.PathLike | bytes, ...] = ()
    prompt: VisualPrompt | None = None
    origin: str = field(default="example", compare=False)

    def __post_init__(self):
        if not isinstance(self.text, str):
            raise InvalidExample(f"{self.origin}: text is {self.text!r}; expected a string, empty for none")
        if not self.text and not self.images:
            raise InvalidExample(f"{self.origin}: neither text nor image; give at least one of them")
        half = _HALF_CHARACTER.search(self.text)
        if half is not None:
            raise InvalidExample(
                f"{self.origin}: character {half.start()} of the text is {half[0]!r}, half of a surrogate pair and "
                "not Unicode; write the whole character, or leave it out"
            )
        if self.prompt is not None and not self.images:
            raise InvalidExample(f"{self.origin}: a visual prompt without an image; give the image it points into")


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
