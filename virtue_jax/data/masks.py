"""Masks and their written forms: COCO run lengths (plain and compressed), polygons, and pixels well inside a mask."""

from collections.abc import Sequence

import numpy as np

from virtue_jax.data.example import InvalidExample

FIXED = 256  # fixed-point units per pixel of `fill_polygons`
_FARTHEST = 1_000_000  # pixels that a vertex may be away; further ones would leave the 64 bits of `fill_polygons`
_LARGEST_SHIFT = 40  # bits of a compressed run length; a larger one is damage


def fill_polygons(rings: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """bool[height, width]: the pixels whose centre lies inside `rings` by the even-odd rule.

    rings: int[n, 2] vertices (x, y) each, in 1/256 pixel, closed implicitly; a ring inside a ring is a hole. Integer
    arithmetic throughout, so the same on every machine. Parts outside the frame are cut off.
    """
    toggles = np.zeros((height, width + 1), np.uint8)
    for ring in rings:
        for (xa, ya), (xb, yb) in zip(ring.tolist(), np.roll(ring, -1, axis=0).tolist(), strict=True):
            if ya > yb:
                xa, ya, xb, yb = xb, yb, xa, ya
            first, last = max(_first_centre(ya), 0), min(_first_centre(yb), height)
            if first >= last:
                continue
            rows = np.arange(first, last, dtype=np.int64)
            run = yb - ya
            crossing = xa * run + (rows * FIXED + FIXED // 2 - ya) * (xb - xa) - FIXED // 2 * run
            columns = np.clip(-(-crossing // (FIXED * run)), 0, width)
            toggles[rows, columns] ^= 1
    return np.bitwise_xor.accumulate(toggles, axis=1)[:, :width].astype(bool)


def _first_centre(fixed: int) -> int:
    """Index of the first pixel whose centre is at or after this fixed-point coordinate."""
    return -(-(fixed - FIXED // 2) // FIXED)


def rle_encode(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths of bool[H, W]: column-major, starting with the run of zeros."""
    flat = np.ascontiguousarray(mask.T).ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    counts = np.diff(edges).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def decode_segmentation(value, height: int, width: int) -> np.ndarray:
    """bool[height, width] from any form that COCO annotations use.

    value: {"size": [H, W], "counts": list of run lengths, or COCO's compressed str/bytes}, or a list of polygons
    [x1, y1, x2, y2, ...] in pixels (their union; a pixel belongs to it if its centre does).

    Raises:
        InvalidExample: another form, another size than the image's, runs that do not add up, too short a polygon, and
            whatever else is no segmentation.
    """
    try:
        if isinstance(value, dict):
            return _decode_rle(value, height, width)
        if isinstance(value, list | tuple | np.ndarray) and len(value):
            polygons = [value] if np.isscalar(value[0]) else value
            mask = np.zeros((height, width), bool)
            for polygon in polygons:
                mask |= _polygon_mask(polygon, height, width)
            return mask
    except InvalidExample:
        raise
    except Exception as error:  # numbers may be anything that JSON or a table can hold
        raise InvalidExample(
            f"segmentation holds no whole numbers, or not where they belong ({error}); write COCO's run lengths or "
            "polygons"
        ) from error
    raise InvalidExample(
        f"segmentation of type {type(value).__name__}: expected COCO run lengths or a list of polygons"
    )


def _polygon_mask(polygon, height: int, width: int) -> np.ndarray:
    flat = np.asarray(polygon, np.float64)
    if flat.ndim != 1 or flat.size < 6 or flat.size % 2 or not (np.abs(flat) <= _FARTHEST).all():
        raise InvalidExample(
            "segmentation polygon: expected [x1, y1, x2, y2, x3, y3, ...], at least three finite points in pixels"
        )
    return fill_polygons([np.rint(flat.reshape(-1, 2) * FIXED).astype(np.int64)], height, width)


def _decode_rle(value: dict, height: int, width: int) -> np.ndarray:
    size, counts = value.get("size"), value.get("counts")
    if size is None or counts is None:
        raise InvalidExample(f"segmentation with keys {sorted(map(str, value))}: expected 'size' and 'counts'")
    if list(size) != [height, width]:
        raise InvalidExample(f"segmentation size {list(size)}: the image is [{height}, {width}] (height, width)")
    if isinstance(counts, str | bytes):
        counts = decompress_counts(counts)
    lengths = np.asarray(counts)
    counts = np.array(counts, np.int64)
    if counts.ndim != 1 or not np.array_equal(lengths, counts):
        raise InvalidExample("segmentation run lengths: expected a list of whole numbers")
    # The sum of lengths within the picture cannot leave 64 bits.
    if (counts < 0).any() or (counts > height * width).any() or counts.sum() != height * width:
        total = sum(counts.tolist())
        raise InvalidExample(
            f"segmentation run lengths: expected {height * width} pixels in all, none negative, got {total}"
        )
    inside = np.arange(counts.size) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


def decompress_counts(text: str | bytes) -> list[int]:
    """Run lengths from COCO's compressed form: six bits a character from '0' on, five of value and one "more follows",
    little end first, signed; from the fourth run on each is stored as the difference to the run two before.

    Raises:
        InvalidExample: a character that is none of these, a number that is too large or has no end.
    """
    counts, value, shift = [], 0, 0
    for byte in text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text:
        code = byte - 48
        if not 0 <= code < 64 or shift > _LARGEST_SHIFT:
            wrong = f"byte {byte}" if shift <= _LARGEST_SHIFT else f"a number of more than {shift} bits"
            raise InvalidExample(f"compressed run lengths hold {wrong}: expected characters from '0' to 'o'")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise InvalidExample("compressed run lengths end in the middle of a number; the text was cut off")
    return counts


def interior(mask: np.ndarray, radius: int) -> np.ndarray:
    """int[n, 2] pixels (x, y), row by row, whose (2 radius + 1)-square window lies wholly inside bool[H, W] `mask`."""
    padded = np.pad(mask, ((1 + radius, radius), (1 + radius, radius)))
    sums = padded.astype(np.int64).cumsum(0).cumsum(1)
    side = 2 * radius + 1
    full = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side] == side * side
    return np.argwhere(full)[:, ::-1]


def depth(mask: np.ndarray) -> int:
    """The largest radius for which `interior` finds a pixel; -1 for an empty mask."""
    low, high = -1, min(mask.shape) // 2 + 1
    while high - low > 1:
        middle = (low + high) // 2
        if len(interior(mask, middle)):
            low = middle
        else:
            high = middle
    return low


def deepest_pixel(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of a pixel as far from the mask's border as any (chessboard distance).

    Raises:
        ValueError: the mask is empty.
    """
    radius = depth(mask)
    if radius < 0:
        raise ValueError("the mask is empty, so no point lies inside it")
    pixels = interior(mask, radius)
    x, y = pixels[len(pixels) // 2]
    return int(x), int(y)


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(x, y, w, h) of the true pixels of a non-empty mask, in whole pixels, as COCO has it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y
