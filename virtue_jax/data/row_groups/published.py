"""Made-up lengths like those of SCaR-train and MMEB-train: needs of elements to choose and judge row groups by, without
the data.

Row counts are the published ones. Sizes and lengths are set by hand from what is known of the data sets, not measured:

- COCO: long side 640; short side mostly 480 or about 427, a third of the images portrait, a twentieth square; a tenth
  are 500x375 and the like (Pascal's Flickr images). Visual Genome: half COCO, half Flickr at 500 or 1024 pixels ("72 to
  1280 pixels wide, 500 on average", its paper). ADE20K: short side 512 (683x512 mostly), a quarter of 256x256.
- Documents (DocVQA) and infographics are larger than `max_pixels` and so all take the most vision tokens; charts, news
  and web pictures are spread widely (log-normal area, aspect ratios 2:3 to 16:9). Grounding targets are crops.
- SCaR captions have 12 tokens (median; 5 to 95 %: 7 to 19), its query template 38 and the box's digits (one token each:
  about 11 where boxes are whole numbers, 22 where they have two decimals). MMEB instructions 10 to 20 tokens; answers
  and class names 2 to 4; captions 12, news captions 35, a dialogue of ten rounds 150.

Real lengths of real data: `measure.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from virtue_jax.config import VirtueConfig
from virtue_jax.data.encoding.qwen_image import resized_size
from virtue_jax.data.formats.mmeb import LIMIT, SUBSETS
from virtue_jax.data.packing.need import Need, example_need, need_together
from virtue_jax.data.row_groups.simulate import NeedSource

# (width, height, share)
_COCO = (
    *((640, 480, 24), (480, 640, 10), (640, 427, 20), (427, 640, 7), (640, 426, 7), (426, 640, 2), (640, 425, 4)),
    *((640, 428, 3), (640, 424, 2), (640, 360, 3), (360, 640, 1), (640, 512, 2), (512, 640, 1), (640, 640, 3)),
    *((612, 612, 2), (500, 375, 5), (375, 500, 2), (500, 333, 3), (333, 500, 1), (480, 480, 1)),
)
_FLICKR = ((500, 375, 34), (375, 500, 12), (500, 333, 14), (333, 500, 6), (1024, 768, 14), (768, 1024, 4))
_VG = (
    *((width, height, share / 2) for width, height, share in _COCO),
    *((width, height, share / 2) for width, height, share in _FLICKR),
    *((800, 600, 4), (1024, 683, 3), (1280, 960, 0.5), (300, 225, 1)),
)
_ADE = ((683, 512, 45), (512, 683, 5), (256, 256, 25), (768, 512, 10), (512, 512, 8), (910, 512, 4), (1024, 512, 3))
TABLES = {"coco": _COCO, "vg": _VG, "ade": _ADE, "voc": _FLICKR[:4], "square": ((512, 512, 1),)}
# Median width x height in pixels, spread of its logarithm; aspect ratios are drawn from _ASPECTS.
SPREADS = {
    "imagenet": (440 * 370, 0.5),
    "news": (800 * 560, 0.5),
    "web": (900 * 680, 0.7),
    "meme": (650 * 600, 0.5),
    "chart": (800 * 600, 0.4),
    "document": (1700 * 2200, 0.2),
    "crop": (190 * 190, 0.8),
}
_ASPECTS = (4 / 3, 4 / 3, 3 / 2, 3 / 2, 16 / 9, 1.0, 3 / 4, 2 / 3)


@dataclass(frozen=True)
class Side:
    """One side of a pair: `fixed` tokens (template, instruction), a log-normal number of further ones (median, spread
    of the logarithm), and an image of a kind of TABLES or SPREADS or none."""

    median: float
    spread: float
    image: str = ""
    fixed: int = 0


@dataclass(frozen=True)
class Lengths:
    rows: int
    query: Side
    target: Side


_CAPTION = Side(12, 0.3)
SCAR = {
    "RefCOCOg": Lengths(40_674, Side(22, 0.1, "coco", 38), _CAPTION),
    "RefCOCO+": Lengths(38_807, Side(22, 0.1, "coco", 38), _CAPTION),
    "COCO-Stuff": Lengths(426_379, Side(11, 0.1, "coco", 38), _CAPTION),
    "VisualGenome": Lengths(357_583, Side(11, 0.1, "vg", 38), _CAPTION),
    "ADE20K": Lengths(94_271, Side(11, 0.1, "ade", 38), _CAPTION),
}
_CLASS, _ANSWER, _COCO_CAPTION, _NEWS_CAPTION = Side(4, 0.4), Side(3, 0.5), Side(12, 0.25), Side(35, 0.5)
_SIDES = {
    "ImageNet_1K": (Side(1, 0, "imagenet", 12), _CLASS),
    "N24News": (Side(30, 0.5, "news", 18), Side(2, 0.3)),
    "HatefulMemes": (Side(1, 0, "meme", 16), Side(1, 0)),
    "VOC2007": (Side(1, 0, "voc", 14), Side(2, 0.3)),
    "SUN397": (Side(1, 0, "web", 12), _CLASS),
    "OK-VQA": (Side(11, 0.3, "coco", 16), _ANSWER),
    "A-OKVQA": (Side(12, 0.3, "coco", 16), _ANSWER),
    "DocVQA": (Side(12, 0.3, "document", 16), _ANSWER),
    "InfographicsVQA": (Side(15, 0.3, "document", 16), _ANSWER),
    "ChartQA": (Side(15, 0.3, "chart", 16), _ANSWER),
    "Visual7W": (Side(9, 0.3, "vg", 16), _ANSWER),
    "VisDial": (Side(140, 0.2, "", 14), Side(1, 0, "coco", 12)),
    "CIRR": (Side(15, 0.4, "web", 24), Side(1, 0, "web", 12)),
    "VisualNews_t2i": (Side(35, 0.5, "", 14), Side(1, 0, "news", 12)),
    "VisualNews_i2t": (Side(1, 0, "news", 16), _NEWS_CAPTION),
    "MSCOCO_t2i": (Side(12, 0.25, "", 14), Side(1, 0, "coco", 12)),
    "MSCOCO_i2t": (Side(1, 0, "coco", 16), _COCO_CAPTION),
    "NIGHTS": (Side(1, 0, "square", 16), Side(1, 0, "square", 12)),
    "WebQA": (Side(22, 0.3, "", 16), Side(18, 0.4, "web", 12)),
    "MSCOCO": (Side(3, 0.5, "coco", 22), Side(1, 0, "crop", 12)),
}
MMEB = {name: Lengths(rows, *_SIDES[name]) for name, rows in SUBSETS.items()}
PUBLISHED = {"scar": SCAR, "mmeb": MMEB}


def published_needs(
    name: str, config: VirtueConfig, *, count: int = 4000, seed: int = 0, mixture: str = "rows", share_images: int = 1
) -> list[NeedSource]:
    """`count` elements of each subset of "scar" or "mmeb", for a model of this geometry.

    mixture: subsets by their row counts ("rows", at most 100,000 counting, as VIRTUE's yaml limits them), or all alike
    ("equal", as its weights of 1 do). share_images: so many queries on one image make an element.
    """
    subsets: Mapping[str, Lengths] = PUBLISHED[name]
    sources = []
    for number, lengths in enumerate(subsets.values()):
        rng = np.random.default_rng([seed, number])
        sides = [_draw(side, config, rng, count * share_images) for side in (lengths.query, lengths.target)]
        grid = config.points_per_side**2 + 1
        elements = [
            _element(sides, number, e, share_images, 3 if name == "scar" else grid, config.segmentation_tokens)
            for e in range(count)
        ]
        weight = min(lengths.rows, LIMIT) if mixture == "rows" else 1.0
        sources.append(NeedSource(elements, [share_images] * count, weight))
    return sources


def _draw(side: Side, config: VirtueConfig, rng: np.random.Generator, count: int) -> tuple[list[int], list[int]]:
    """(text tokens, patches) of `count` examples; an image's markup counts as two tokens and a line break."""
    words = side.fixed + np.maximum(1, np.round(side.median * np.exp(side.spread * rng.standard_normal(count))))
    if not side.image:
        return words.astype(int).tolist(), [0] * count
    if side.image in TABLES:
        table = np.array(TABLES[side.image])
        sizes = table[rng.choice(len(table), count, p=table[:, 2] / table[:, 2].sum()), :2]
    else:
        area, spread = SPREADS[side.image]
        area = area * np.exp(spread * rng.standard_normal(count))
        aspect = rng.choice(_ASPECTS, count) * np.exp(0.08 * rng.standard_normal(count))
        sizes = np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)], 1)
    patches = []
    for width, height in np.maximum(np.round(sizes), 1).astype(int).tolist():
        resized = resized_size(height, width, config)
        patches.append(resized[0] * resized[1] // config.vision.patch_size**2)
    return (words + 3).astype(int).tolist(), patches


def _element(sides, source: int, number: int, share: int, points: int, segmentation: int) -> tuple[Need, ...]:
    (words, patches), targets = sides
    first = number * share
    queries = range(first, first + share)
    tower = (segmentation + patches[first] // 4) if patches[first] else 0
    images = [((source, "query", number), patches[first])] if patches[first] else []
    asked = [example_need(words[i] + tower, images, points=points if images else None, positives=1) for i in queries]
    items = [need_together(asked)] if images else asked
    for i in queries:
        words_t, patches_t = targets[0][i], targets[1][i]
        if patches_t:
            image = [((source, "target", i), patches_t)]
            items.append(example_need(words_t + segmentation + patches_t // 4, image, points=points))
        else:
            items.append(example_need(words_t))
    return tuple(items)
