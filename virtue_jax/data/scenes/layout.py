"""Which objects an image holds and where: each in a cell of its own of a 3x3 grid, drawn apart from all others."""

from dataclasses import dataclass

import numpy as np

from virtue_jax.data.masks import FIXED, fill_polygons
from virtue_jax.data.scenes.outlines import TURNS, aspect, placed_outline
from virtue_jax.data.scenes.vocabulary import Description, Vocabulary

SUPERSAMPLE = 4
CELLS = 3
_OFF_CENTRE = 17


@dataclass(frozen=True)
class Placement:
    """An object before it is drawn: `silhouette` bool[4 h, 4 w] is its outline at four times the resolution of the
    w x h pixels whose upper left corner is (left, top)."""

    description: Description
    left: int
    top: int
    silhouette: np.ndarray
    phase: tuple[int, int]  # shifts of its texture, in thousandths of a period

    @property
    def size(self) -> tuple[int, int]:
        """(w, h) in pixels of the image."""
        return self.silhouette.shape[1] // SUPERSAMPLE, self.silhouette.shape[0] // SUPERSAMPLE


def place_objects(rng: np.random.Generator, width: int, height: int, count: int, words: Vocabulary) -> list[Placement]:
    """`count` (at most nine) objects with different (colour, kind), in random cells of the grid."""
    cells = rng.permutation(CELLS * CELLS)[:count]
    names = rng.permutation(len(words.colours) * len(words.kinds))[:count]
    placements = []
    for cell, name in zip(cells.tolist(), names.tolist(), strict=True):
        texture = words.textures[int(rng.integers(len(words.textures)))]
        colour, kind = words.colours[name % len(words.colours)], words.kinds[name // len(words.colours)]
        row, column = divmod(cell, CELLS)
        left, right = width * column // CELLS, width * (column + 1) // CELLS
        top, bottom = height * row // CELLS, height * (row + 1) // CELLS
        placements.append(_place(rng, Description(texture, colour, kind), left, top, right - left, bottom - top))
    return placements


def _place(rng: np.random.Generator, description: Description, left: int, top: int, width: int, height: int):
    """One object in the cell, 70 to 93 % of its shorter side large, apart from the cell's edge and off its centre by at
    most `_OFF_CENTRE` percent, so that nobody doubts which third of the frame it is in."""
    side = min(width, height) * int(rng.integers(70, 94)) // 100
    squeeze = int(rng.integers(88, 113))
    natural_w, natural_h = aspect(description.kind)
    wide, tall = natural_w * squeeze, natural_h * 100
    w = max(4, side * min(wide, tall) // tall) if wide < tall else side
    h = max(4, side * min(wide, tall) // wide) if tall < wide else side
    x = left + _start(rng, width, w)
    y = top + _start(rng, height, h)
    turn = TURNS[int(rng.integers(len(TURNS)))]
    scale = SUPERSAMPLE * FIXED
    rings = placed_outline(description.kind, turn, w * scale, h * scale)
    silhouette = fill_polygons(rings, h * SUPERSAMPLE, w * SUPERSAMPLE)
    return Placement(description, x, y, silhouette, (int(rng.integers(1000)), int(rng.integers(1000))))


def _start(rng: np.random.Generator, room: int, size: int) -> int:
    slack = max(0, min((room - size) // 2 - 1, room * _OFF_CENTRE // 100))
    return (room - size) // 2 + int(rng.integers(-slack, slack + 1))
