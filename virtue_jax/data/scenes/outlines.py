"""How each kind of object is drawn: rings of integer vertices in a square of side 2000 about the origin, y downwards.

A ring inside a ring is a hole. Vertices are rounded to integers, and everything after is integer arithmetic, so that a
last-bit difference between two machines' sines cannot move a pixel.
"""

import math

import numpy as np

UNIT = 1000


def _arc(radius: float, start: float, stop: float, n: int, centre: tuple[float, float] = (0, 0)) -> list:
    angles = [math.radians(start + (stop - start) * i / (n - 1)) for i in range(n)]
    return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles]


def _circle(radius: float, n: int = 64) -> list:
    return _arc(radius, 0, 360 - 360 / n, n)


def _star(points: int, inner: float) -> list:
    radii = [1, inner] * points
    return [(r * math.sin(math.pi * i / points), -r * math.cos(math.pi * i / points)) for i, r in enumerate(radii)]


def _heart(n: int = 60) -> list:
    turns = [2 * math.pi * i / n for i in range(n)]
    x = [16 * math.sin(t) ** 3 / 17 for t in turns]
    y = [-(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17 for t in turns]
    return list(zip(x, y, strict=True))


def _flower(petals: int = 6, n: int = 84) -> list:
    turns = [2 * math.pi * i / n for i in range(n)]
    radii = [0.78 + 0.22 * math.cos(petals * t) for t in turns]
    return [(r * math.sin(t), -r * math.cos(t)) for r, t in zip(radii, turns, strict=True)]


def _crescent() -> list:
    """A disc less a smaller one to its right; the arcs meet at 43 degrees on the outer, 71 on the inner circle."""
    return _arc(1, 43, 317, 48) + _arc(0.72, 288.8, 71.2, 40, centre=(0.5, 0))


def _fish() -> list:
    body = [(0.72 * math.cos(math.radians(a)) - 0.28, 0.66 * math.sin(math.radians(a))) for a in range(24, 337, 8)]
    return [*body, (0.98, -0.58), (0.80, 0), (0.98, 0.58)]


_OUTLINES = {
    "circle": [_circle(1)],
    "ring": [_circle(1), _circle(0.5)],
    "square": [[(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]],
    "triangle": [[(0, -0.9), (1, 0.85), (-1, 0.85)]],
    "star": [_star(5, 0.42)],
    "cross": [[(-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32),
               (0.32, 1), (-0.32, 1), (-0.32, 0.32), (-1, 0.32), (-1, -0.32), (-0.32, -0.32)]],
    "heart": [_heart()],
    "crescent": [_crescent()],
    "arrow": [[(-1, -0.34), (0.05, -0.34), (0.05, -0.9), (1, 0), (0.05, 0.9), (0.05, 0.34), (-1, 0.34)]],
    "diamond": [[(0, -1), (0.68, 0), (0, 1), (-0.68, 0)]],
    "hexagon": [[(-0.5, -0.87), (0.5, -0.87), (1, 0), (0.5, 0.87), (-0.5, 0.87), (-1, 0)]],
    "house": [[(0, -1), (1, -0.2), (0.8, -0.2), (0.8, 0.95), (-0.8, 0.95), (-0.8, -0.2), (-1, -0.2)],
              [(-0.22, 0.95), (-0.22, 0.3), (0.22, 0.3), (0.22, 0.95)]],
    "tree": [[(0, -1), (0.5, -0.35), (0.28, -0.35), (0.72, 0.15), (0.45, 0.15), (0.9, 0.62), (0.2, 0.62), (0.2, 1),
              (-0.2, 1), (-0.2, 0.62), (-0.9, 0.62), (-0.45, 0.15), (-0.72, 0.15), (-0.28, -0.35), (-0.5, -0.35)]],
    "fish": [_fish()],
    "flower": [_flower(), _circle(0.2, 24)],
    "lightning bolt": [[(0.1, -1), (-0.75, 0.14), (-0.15, 0.14), (-0.45, 1), (0.75, -0.3), (0.15, -0.3), (0.7, -1)]],
}  # fmt: skip

OUTLINES = {
    kind: [np.array([[round(x * UNIT), round(y * UNIT)] for x, y in ring], np.int64) for ring in rings]
    for kind, rings in _OUTLINES.items()
}

TURNS = (-15, -10, -5, 0, 5, 10, 15)  # degrees
_ROTATIONS = {d: (round(1024 * math.cos(math.radians(d))), round(1024 * math.sin(math.radians(d)))) for d in TURNS}


def placed_outline(kind: str, degrees: int, width: int, height: int) -> list[np.ndarray]:
    """The rings of `kind`, turned, stretched to fill `width` x `height` (int, any unit) from the origin on."""
    cosine, sine = _ROTATIONS[degrees]
    turned = [
        np.stack([r[:, 0] * cosine - r[:, 1] * sine, r[:, 0] * sine + r[:, 1] * cosine], 1) for r in OUTLINES[kind]
    ]
    everything = np.concatenate(turned)
    low, high = everything.min(0), everything.max(0)
    return [(ring - low) * np.array([width, height]) // (high - low) for ring in turned]


def aspect(kind: str) -> tuple[int, int]:
    """Width and height of the outline as drawn, in units."""
    everything = np.concatenate(OUTLINES[kind])
    width, height = everything.max(0) - everything.min(0)
    return int(width), int(height)
