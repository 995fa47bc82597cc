"""The backgrounds: muted colours and fine patterns, so that the objects stand out. Integer arithmetic only."""

from collections.abc import Callable

import numpy as np


class _Canvas:
    """Coordinates of a background; `unit` (pixels) makes its patterns as coarse as the frame is large."""

    def __init__(self, rng: np.random.Generator, width: int, height: int):
        self.rng, self.width, self.height = rng, width, height
        self.unit = max(2, min(width, height) // 32)
        self.y, self.x = np.mgrid[0:height, 0:width]

    def shift(self, period: int) -> int:
        return int(self.rng.integers(period))

    def speckle(self, share: int) -> np.ndarray:
        """bool[H, W]: `share` percent of all dots, each half a unit large."""
        size = max(1, self.unit // 2)
        coarse = self.rng.integers(100, size=(-(-self.height // size), -(-self.width // size))) < share
        return coarse.repeat(size, 0).repeat(size, 1)[: self.height, : self.width]

    def paint(self, base: tuple, *layers: tuple[np.ndarray, tuple]) -> np.ndarray:
        """int32[H, W, 3]: a flat colour, then each (where, colour) over it, all lightened or darkened alike."""
        image = np.empty((self.height, self.width, 3), np.int32)
        image[:] = base
        for where, colour in layers:
            image[where] = colour
        return image


def _meadow(c: _Canvas) -> np.ndarray:
    return c.paint((168, 196, 140), (c.speckle(12), (146, 178, 118)), (c.speckle(3), (190, 212, 160)))


def _beach(c: _Canvas) -> np.ndarray:
    return c.paint((226, 208, 170), (c.speckle(10), (212, 190, 150)), (c.speckle(4), (238, 224, 194)))


def _snow(c: _Canvas) -> np.ndarray:
    return c.paint((226, 234, 242), (c.speckle(6), (210, 222, 234)))


def _night(c: _Canvas) -> np.ndarray:
    return c.paint((30, 34, 62), (c.speckle(2), (214, 214, 190)))


def _bricks(c: _Canvas) -> np.ndarray:
    course, brick = 3 * c.unit, 6 * c.unit
    y = c.y + c.shift(course)
    x = c.x + c.shift(brick) + (y // course % 2) * (brick // 2)
    line = max(1, c.unit // 2)
    return c.paint((176, 128, 112), ((y % course < line) | (x % brick < line), (204, 190, 180)))


def _table(c: _Canvas) -> np.ndarray:
    plank, line = 5 * c.unit, max(1, c.unit // 3)
    y = c.y + c.shift(plank)
    grain = (y % plank) % c.unit < line
    return c.paint((170, 130, 92), (grain, (160, 118, 80)), (y % plank < line, (104, 74, 48)))


def _tiles(c: _Canvas) -> np.ndarray:
    tile, line = 6 * c.unit, max(1, c.unit // 2)
    grout = ((c.x + c.shift(tile)) % tile < line) | ((c.y + c.shift(tile)) % tile < line)
    return c.paint((196, 204, 200), (grout, (132, 142, 140)))


def _tablecloth(c: _Canvas) -> np.ndarray:
    check = 3 * c.unit
    odd = ((c.x + c.shift(2 * check)) // check + (c.y + c.shift(2 * check)) // check) % 2 == 1
    return c.paint((232, 222, 222), (odd, (208, 182, 184)))


def _sea(c: _Canvas) -> np.ndarray:
    period, length = 4 * c.unit, 8 * c.unit
    x = c.x + c.shift(length)
    swell = abs(x % length - length // 2) // 2
    crest = (c.y + c.shift(period) + swell) % period < max(1, c.unit // 2)
    return c.paint((122, 160, 182), (crest, (168, 196, 210)))


def _sunset(c: _Canvas) -> np.ndarray:
    top, bottom = np.array((110, 84, 122)), np.array((232, 176, 138))
    rows = np.arange(c.height)[:, None]
    gradient = (top * (c.height - rows) + bottom * rows) // c.height
    return np.repeat(gradient[:, None, :], c.width, 1).astype(np.int32)


def _paper(c: _Canvas) -> np.ndarray:
    square, line = 2 * c.unit, max(1, c.unit // 3)
    ruled = ((c.x + c.shift(square)) % square < line) | ((c.y + c.shift(square)) % square < line)
    return c.paint((244, 244, 236), (ruled, (176, 200, 216)))


def _forest(c: _Canvas) -> np.ndarray:
    trunk = 7 * c.unit
    bark = (c.x + c.shift(trunk)) % trunk < 2 * c.unit
    return c.paint((52, 70, 56), (c.speckle(10), (62, 84, 66)), (bark, (66, 56, 48)))


_PAINTERS: dict[str, Callable[[_Canvas], np.ndarray]] = {
    "on a green meadow": _meadow,
    "on a sandy beach": _beach,
    "on a snowy field": _snow,
    "under a starry night sky": _night,
    "in front of a brick wall": _bricks,
    "on a wooden table": _table,
    "on a tiled floor": _tiles,
    "on a checkered tablecloth": _tablecloth,
    "over a rippled sea": _sea,
    "in front of a sunset": _sunset,
    "on graph paper": _paper,
    "in a dark forest": _forest,
}


def paint_background(rng: np.random.Generator, scene: str, width: int, height: int) -> np.ndarray:
    """int32[height, width, 3] in 0..255, in a light a little brighter or darker each time."""
    light = int(rng.integers(-10, 11))
    return np.clip(_PAINTERS[scene](_Canvas(rng, width, height)) + light, 0, 255)
