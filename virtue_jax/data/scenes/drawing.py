"""Draws an object with its texture and outline into an image, with smooth edges, and returns its mask."""

import numpy as np

from virtue_jax.data.scenes.layout import SUPERSAMPLE, Placement
from virtue_jax.data.scenes.vocabulary import COLOURS

_OPAQUE = SUPERSAMPLE * SUPERSAMPLE


def draw_object(image: np.ndarray, placement: Placement) -> np.ndarray:
    """Paints into int32[H, W, 3] `image` in place.

    Returns: bool[H, W], the pixels at least half covered, outline included.
    """
    fine = placement.silhouette
    first, second, outline = (np.array(c, np.int32) for c in COLOURS[placement.description.colour])
    w, h = placement.size
    thickness = SUPERSAMPLE * max(1, min(w, h) // 24)
    colours = np.where(_texture(placement)[..., None], second, first)
    colours[~_eroded(fine, thickness)] = outline
    colours[~fine] = 0
    covered = _sum_blocks(fine[..., None].astype(np.int32))
    part = image[placement.top : placement.top + h, placement.left : placement.left + w]
    part[:] = (_sum_blocks(colours) + part * (_OPAQUE - covered) + _OPAQUE // 2) // _OPAQUE
    mask = np.zeros(image.shape[:2], bool)
    mask[placement.top : placement.top + h, placement.left : placement.left + w] = 2 * covered[..., 0] >= _OPAQUE
    return mask


def _sum_blocks(fine: np.ndarray) -> np.ndarray:
    """int32[h, w, C]: sums over the SUPERSAMPLE-sided squares of int32[4 h, 4 w, C]."""
    h, w, c = fine.shape
    return fine.reshape(h // SUPERSAMPLE, SUPERSAMPLE, w // SUPERSAMPLE, SUPERSAMPLE, c).sum((1, 3), dtype=np.int32)


def _eroded(mask: np.ndarray, radius: int) -> np.ndarray:
    """bool[H, W]: where the disc of this radius (as an octagon) around the pixel lies inside the mask."""
    diagonal = radius * 5 // 12
    square = _window_full(_window_full(mask, radius - diagonal, 0), radius - diagonal, 1)
    for _ in range(diagonal):
        padded = np.pad(square, 1)
        square = square & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return square


def _window_full(mask: np.ndarray, radius: int, axis: int) -> np.ndarray:
    """bool[H, W]: where all pixels within `radius` along `axis` are true; outside the array nothing is."""
    pad = [(0, 0), (0, 0)]
    pad[axis] = (radius + 1, radius)
    sums = np.pad(mask, pad).cumsum(axis, dtype=np.int32)
    side, length = 2 * radius + 1, mask.shape[axis]
    return np.take(sums, range(side, side + length), axis) - np.take(sums, range(length), axis) == side


def _texture(placement: Placement) -> np.ndarray:
    """bool[4 h, 4 w]: where the second colour shows."""
    height, width = placement.silhouette.shape
    period = max(5 * SUPERSAMPLE, min(height, width) // 4)
    y, x = np.mgrid[0:height, 0:width]
    x += placement.phase[0] * period // 1000
    y += placement.phase[1] * period // 1000
    match placement.description.texture:
        case "striped":
            return (x + y) % period * 2 < period
        case "checkered":
            return (x // (period * 3 // 4) + y // (period * 3 // 4)) % 2 == 1
        case "dotted":
            from_x, from_y = x % period - period // 2, y % period - period // 2
            return from_x * from_x + from_y * from_y < (period * period) // 11
    return np.zeros((height, width), bool)
