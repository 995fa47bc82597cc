"""Visual prompts: how they are written into the text, and what SAM-2's prompt encoder gets of them."""

import re
from dataclasses import dataclass

import numpy as np

from virtue_jax.batch import NOT_A_POINT
from virtue_jax.config import Compat
from virtue_jax.data.encoding.images import load_mask
from virtue_jax.data.encoding.tokens import IMAGE_TOKEN
from virtue_jax.data.example import IMAGE_MARKER, NEGATIVE, POSITIVE, Example, InvalidExample, VisualPrompt

SAM_FRAME = 1024  # side of the frame that `VisualPrompt.frame` "sam" means, whatever SAM's input size is
BOX_CORNERS = (2, 3)  # SAM-2's labels of a box's top-left and bottom-right corner
MASK_LOGIT = 10.0  # of a binary mask's inside; its outside is the negative (golden README, section 5, item 3)
_LEADING_MARKER = re.compile(rf"^{re.escape(IMAGE_MARKER)}[\n ]?")  # with what parts it from the text
_BOX_TOLERANCE = 1.0  # image pixels by which rounding may push a box over the edge
_LEAST_SIDE = 1 - 1e-6  # of a box, pixels of its frame; x1 + width - x1 may fall short of width by rounding


@dataclass(frozen=True)
class EncodedPrompt:
    """What SAM-2's prompt encoder takes for one visual prompt.

    points: float32[N, 2], (x, y) in SAM's pixel frame, before the half-pixel shift. labels: int32[N]; 1 positive,
    0 negative, 2 and 3 box corners, NOT_A_POINT. N is 0 for a mask alone. mask: float32[S/4, S/4] logits or None.
    """

    points: np.ndarray
    labels: np.ndarray
    mask: np.ndarray | None = None


def prompt_text(example: Example, image_size: tuple[int, int] | None, compat: Compat) -> str:
    """The text to tokenise. image_size: (H, W) of the first image, None without images.

    A text that holds `<|image_pad|>`, and the text of an example without images, are taken as they are. Else the
    template, line by line: the compat's markup once per image; the text, if any (an empty one makes no line); the
    coordinates, if `coordinates_in_text`. Where the text holds `<|image_1|>`, the markup stands there instead of in a
    line of its own; without an image the marker is dropped, or kept as a word (`Compat.marker_alone`). Coordinates:

    - box: `Referring object bbox: [x1, y1, x2, y2]`, as the reference's SCaR data has it, integers where integral;
    - one positive point: `Referring object point: (x, y)`, whole pixels (rounded down) as the reference's demo has it.

    The reference has no words for the rest. Ours: `Referring object points: (x, y), (x, y)`, and for negative points a
    line `Referring background point(s): ...`; box line first; a mask is not written. Coordinates are always in the
    image's pixels, so those given in SAM's frame are scaled and rounded down, as the demo does.

    Raises:
        InvalidExample: as many `<|image_pad|>` as images are needed; names both numbers. More markers than one image.
    """
    if IMAGE_MARKER in example.text and IMAGE_TOKEN not in example.text:
        return _at_marker(example, image_size, compat)
    if IMAGE_TOKEN in example.text or not example.images:
        placeholders = example.text.count(IMAGE_TOKEN)
        if placeholders != len(example.images):
            raise InvalidExample(
                f"{example.origin}: {placeholders} {IMAGE_TOKEN} in the text for {len(example.images)} images; write "
                "one per image, or none for the template"
            )
        return example.text
    lines = [compat.image_markup * len(example.images)]
    if example.text:
        lines.append(example.text)
    return "\n".join([*lines, *_coordinate_lines(example.prompt, image_size, compat)])


def _at_marker(example: Example, image_size: tuple[int, int] | None, compat: Compat) -> str:
    """The text with what stands for its image in the marker's place."""
    markers, images = example.text.count(IMAGE_MARKER), len(example.images)
    if markers > 1 or images > 1:
        raise InvalidExample(
            f"{example.origin}: {markers} {IMAGE_MARKER} in the text for {images} images; the marker stands once, for "
            f"one image: write {IMAGE_TOKEN} once per image, or none"
        )
    if example.images:
        text = example.text.replace(IMAGE_MARKER, compat.image_markup)
        return "\n".join([text, *_coordinate_lines(example.prompt, image_size, compat)])
    if compat.marker_alone == "token":
        return example.text.replace(IMAGE_MARKER, IMAGE_TOKEN)
    return _LEADING_MARKER.sub("", example.text).replace(IMAGE_MARKER, "")


def check_prompt(prompt: VisualPrompt, image_size: tuple[int, int], compat: Compat, origin: str) -> None:
    """Refuses a prompt that the compat cannot honour or that lies outside its frame.

    Points may lie on the frame's edge; a box may reach over it by at most one image pixel, for rounding's sake. A box
    less than a pixel of its frame wide or high was given in fractions of the image.

    Raises:
        InvalidExample: names frame size, value and remedy.
    """
    if compat.prompt_kinds == "single":
        _refuse_beyond_single(prompt, origin)
    width, height = _frame_size(prompt, image_size)
    frame = f"{'SAM frame' if prompt.frame == 'sam' else 'image'} of {width}x{height} pixels (width x height)"
    remedy = f"x runs from 0 to {width}, y from 0 to {height}; correct it, or its frame"
    if prompt.box is not None:
        slack = np.array([width, height]) / np.array(image_size[::-1]) * _BOX_TOLERANCE
        corners = np.array(prompt.box, np.float64).reshape(2, 2)
        if (corners[1] - corners[0] < _LEAST_SIDE).any():
            raise InvalidExample(
                f"{origin}: box [{_listed(prompt.box)}] is less than a pixel wide or high in the {frame}: give it in "
                "pixels, not as fractions from 0 to 1"
            )
        clipped = np.clip(corners, 0, [width, height])
        if (np.abs(corners - clipped) > slack).any() or (clipped[0] >= clipped[1]).any():
            raise InvalidExample(f"{origin}: box [{_listed(prompt.box)}] is outside the {frame}: {remedy}")
    for point in prompt.points:
        if not (0 <= point[0] <= width and 0 <= point[1] <= height):
            raise InvalidExample(f"{origin}: point ({_listed(point[:2])}) is outside the {frame}: {remedy}")


def encode_prompt(
    prompt: VisualPrompt | None,
    image_size: tuple[int, int],
    *,
    sam_size: int,
    points_per_side: int,
    compat: Compat,
    origin: str,
    upright: bool = False,
) -> EncodedPrompt:
    """A prompt on an image of image_size (H, W) for a SAM input of side `sam_size`; None = the points of `point_grid`.

    Order: box corners, points, then SAM-2's padding point wherever there is any (none for a mask alone: its
    image predictor's convention). A box over the edge by rounding is clipped, except where `Compat.box_frame` is
    "verbatim": there its numbers stay as they are, only scaled from SAM_FRAME to `sam_size`. upright: whether a mask
    file is read as viewers show it, as its image is.

    Raises:
        InvalidExample: as `check_prompt` and `load_mask`.
    """
    if prompt is None:
        grid = point_grid(points_per_side, sam_size)
        return _sparse(grid, [POSITIVE] * len(grid))
    check_prompt(prompt, image_size, compat, origin)
    points, labels = [], []
    if prompt.box is not None:
        points += list(_box_corners(prompt, image_size, sam_size, compat))
        labels += BOX_CORNERS
    scale = sam_size / np.array(_frame_size(prompt, image_size))
    points += [np.array(point[:2]) * scale for point in prompt.points]
    labels += [int(point[2]) for point in prompt.points]
    mask = None
    if prompt.mask is not None:
        mask = mask_logits(load_mask(prompt.mask, image_size, origin, upright=upright), sam_size // 4)
    return _sparse(points, labels, mask)


def point_grid(points_per_side: int, size: float) -> np.ndarray:
    """float64[n * n, 2]: the centres (x, y) of an n x n grid over the frame, x fastest."""
    centres = (np.arange(points_per_side) + 0.5) / points_per_side * size
    return np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)


def mask_logits(inside: np.ndarray, size: int) -> np.ndarray:
    """bool[H, W] -> float32[size, size]: nearest resize with pixel centres, +10 inside, -10 outside."""
    rows, columns = ((2 * np.arange(size) + 1) * length // (2 * size) for length in inside.shape)
    return np.where(inside[np.ix_(rows, columns)], MASK_LOGIT, -MASK_LOGIT).astype(np.float32)


def _sparse(points, labels, mask: np.ndarray | None = None) -> EncodedPrompt:
    if len(labels):
        points, labels = [*points, (0.0, 0.0)], [*labels, NOT_A_POINT]
    return EncodedPrompt(np.array(points, np.float32).reshape(-1, 2), np.array(labels, np.int32), mask)


def _box_corners(prompt: VisualPrompt, image_size: tuple[int, int], sam_size: int, compat: Compat) -> np.ndarray:
    corners = np.array(prompt.box, np.float64).reshape(2, 2)
    if prompt.frame == "image" and compat.box_frame == "verbatim":
        return corners * (sam_size / SAM_FRAME)
    frame = np.array(_frame_size(prompt, image_size))
    return np.clip(corners, 0, frame) * (sam_size / frame)


def _frame_size(prompt: VisualPrompt, image_size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the frame in which the prompt's coordinates are."""
    return (SAM_FRAME, SAM_FRAME) if prompt.frame == "sam" else (image_size[1], image_size[0])


def _refuse_beyond_single(prompt: VisualPrompt, origin: str) -> None:
    asked = []
    if prompt.mask is not None:
        asked.append("a mask")
    if len(prompt.points) > 1:
        asked.append(f"{len(prompt.points)} points")
    if any(point[2] == NEGATIVE for point in prompt.points):
        asked.append("a negative point")
    if prompt.box is not None and prompt.points:
        asked.append("a box together with points")
    if asked:
        raise InvalidExample(
            f"{origin}: {', '.join(asked)}: the released behaviour takes one box or one positive point; "
            "choose compat 'paper' (--compat paper) or prompt_kinds 'all'"
        )


def _coordinate_lines(prompt: VisualPrompt | None, image_size: tuple[int, int], compat: Compat) -> list[str]:
    if prompt is None or not compat.coordinates_in_text:
        return []
    to_image = np.array(image_size[::-1]) / SAM_FRAME if prompt.frame == "sam" else None
    lines = []
    if prompt.box is not None:
        box = prompt.box if to_image is None else [int(v) for v in np.array(prompt.box) * np.tile(to_image, 2)]
        lines.append(f"Referring object bbox: [{_listed(box, compat.box_numbers)}]")
    for label, word in ((POSITIVE, "object"), (NEGATIVE, "background")):
        points = [np.array(p[:2]) * (1.0 if to_image is None else to_image) for p in prompt.points if p[2] == label]
        if points:
            listed = ", ".join(f"({int(x)}, {int(y)})" for x, y in points)
            lines.append(f"Referring {word} point{'s' if len(points) > 1 else ''}: {listed}")
    return lines


def _listed(values, box_numbers: str = "integral") -> str:
    """Numbers as Python writes them in a list; "integral": whole ones without a fraction."""

    def written(value) -> str:
        whole = float(value).is_integer() if box_numbers == "integral" else isinstance(value, int | np.integer)
        return str(int(value)) if whole else repr(float(value))

    return ", ".join(map(written, values))
