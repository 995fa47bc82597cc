"""One scene: image, objects with box, point and mask, and their captions, as a function of (seed, index)."""

from dataclasses import dataclass

import numpy as np

from virtue_jax.data.masks import bounding_box, depth, interior
from virtue_jax.data.scenes.backgrounds import paint_background
from virtue_jax.data.scenes.captions import Setting, write_captions
from virtue_jax.data.scenes.drawing import draw_object
from virtue_jax.data.scenes.layout import CELLS, place_objects
from virtue_jax.data.scenes.vocabulary import Description, Vocabulary

SMALLEST_SIDE = 64


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene. box: (x, y, w, h) in whole pixels, tight. point: (x, y), the pixel of a click well inside.
    mask: bool[H, W]. candidates: ten captions, the true one first, in the order of `captions.CANDIDATE_TYPES`."""

    description: Description
    box: tuple[int, int, int, int]
    point: tuple[int, int]
    mask: np.ndarray
    candidates: tuple[str, ...]

    @property
    def caption(self) -> str:
        return self.candidates[0]


@dataclass(frozen=True)
class Scene:
    """image: uint8[H, W, 3]. scene: the words for its background."""

    index: int
    image: np.ndarray
    scene: str
    objects: tuple[SceneObject, ...]


def make_scene(
    seed: int,
    index: int,
    *,
    width: tuple[int, int] = (640, 640),
    height: tuple[int, int] = (480, 480),
    objects: tuple[int, int] = (3, 6),
    vocabulary: Vocabulary | None = None,
) -> Scene:
    """Scene number `index` of the endless series `seed`; the same bits on every machine, whatever was made before.

    width, height (pixels) and objects (number of them) are inclusive ranges, drawn for each scene.

    Raises:
        ValueError: a range that is empty or out of bounds, a vocabulary too small for so many objects.
    """
    words = vocabulary or Vocabulary()
    check_ranges(width, height, objects, words)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))
    frame = int(rng.integers(width[0], width[1] + 1)), int(rng.integers(height[0], height[1] + 1))
    placements = place_objects(rng, *frame, int(rng.integers(objects[0], objects[1] + 1)), words)
    scene = words.scenes[int(rng.integers(len(words.scenes)))]
    image = paint_background(rng, scene, *frame)
    masks = [draw_object(image, placement) for placement in placements]
    boxes = [bounding_box(mask) for mask in masks]
    points = [_click(rng, mask, box) for mask, box in zip(masks, boxes, strict=True)]
    descriptions = [placement.description for placement in placements]
    candidates = write_captions(rng, Setting(descriptions, boxes, frame, scene), words)
    things = zip(descriptions, boxes, points, masks, map(tuple, candidates), strict=True)
    return Scene(index, image.astype(np.uint8), scene, tuple(SceneObject(*thing) for thing in things))


def _click(rng: np.random.Generator, mask: np.ndarray, box: tuple[int, int, int, int]) -> tuple[int, int]:
    """A random pixel at least half as far from the border of the mask as the farthest one."""
    x, y, w, h = box
    inside = mask[y : y + h, x : x + w]
    pixels = interior(inside, depth(inside) // 2)
    column, row = pixels[int(rng.integers(len(pixels)))].tolist()
    return x + column, y + row


def check_ranges(width: tuple, height: tuple, objects: tuple, words: Vocabulary) -> None:
    """Refuses what cannot be drawn, before anything is."""
    for name, (low, high), smallest in (("width", width, SMALLEST_SIDE), ("height", height, SMALLEST_SIDE)):
        if not smallest <= low <= high:
            raise ValueError(f"{name} {low, high}: expected (low, high) pixels with {smallest} <= low <= high")
    if not 1 <= objects[0] <= objects[1] <= CELLS * CELLS:
        raise ValueError(f"objects {tuple(objects)}: expected (low, high) with 1 <= low <= high <= {CELLS * CELLS}")
    if len(words.kinds) * len(words.colours) < objects[1] + 4:
        raise ValueError(f"{len(words.kinds)} kinds x {len(words.colours)} colours: too few for {objects[1]} objects")
