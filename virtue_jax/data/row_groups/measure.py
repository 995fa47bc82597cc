"""Needs of a real source's elements: image headers are read and texts tokenised, no pixel is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from virtue_jax.config import VirtueConfig
from virtue_jax.data.encoding.encode import image_key, reads_upright, sized_key
from virtue_jax.data.encoding.images import image_size
from virtue_jax.data.encoding.prompts import prompt_text
from virtue_jax.data.encoding.qwen_image import resized_size
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.example import Example, InvalidExample, TrainingPair
from virtue_jax.data.packing.need import Need, by_first_image, example_need, need_together
from virtue_jax.data.pair_source import PairSource, read_row
from virtue_jax.data.row_groups.simulate import NeedSource
from virtue_jax.data.unreadable import Unreadable, readable


@dataclass(frozen=True)
class LengthMeasure:
    """Counts what examples take of a row, for one model; the same numbers as those of the encoded examples."""

    config: VirtueConfig
    tokenizer: Tokenizer
    hard_negatives: int = 0
    _patches: dict[str, tuple[tuple[int, int], int]] = field(default_factory=dict, compare=False)

    def element(self, pairs: Sequence[TrainingPair]) -> tuple[Need, ...]:
        """The items of an element: queries on the same images together, every target alone.

        Raises:
            InvalidExample: an image that cannot be opened, or a text that does not fit its images.
        """
        return element_needs([self.pair(pair) for pair in pairs])

    def pair(self, pair: TrainingPair) -> tuple[Need, ...]:
        """What the query takes, then each of its targets.

        Raises:
            InvalidExample: as `element`.
        """
        query = self.example(pair.query)._replace(positives=len(pair.positives))
        targets = (*pair.positives, *pair.negatives[: self.hard_negatives])
        return (query, *map(self.example, targets))

    def example(self, example: Example) -> Need:
        """What one example takes; the first of its distinct images is the prompted one."""
        upright = reads_upright(example, self.config.compat)
        keys = [image_key(source, upright=upright) for source in example.images]
        for key, source in zip(keys, example.images, strict=True):
            if key not in self._patches:
                self._patches[key] = self._measure(image_size(source, example.origin, upright=upright))
        size = self._patches[keys[0]][0] if keys else None
        words = len(self.tokenizer.ids(prompt_text(example, size, self.config.compat)))
        vision = sum(self._patches[key][1] // 4 - 1 for key in keys)  # each stands for one placeholder
        measured = [(key, *self._patches[key]) for key in dict.fromkeys(keys)]
        distinct = [(sized_key(key, size), patches) for key, size, patches in measured]
        return example_need(
            (self.config.segmentation_tokens if keys else 0) + words + vision,
            distinct,
            points=self._points(example) if keys else None,
            mask=example.prompt is not None and example.prompt.mask is not None,
        )

    def _points(self, example: Example) -> int:
        prompt = example.prompt
        if prompt is None:
            return self.config.points_per_side**2 + 1
        points = 2 * (prompt.box is not None) + len(prompt.points)
        return points + bool(points)  # SAM-2's padding point comes with any

    def _measure(self, size: tuple[int, int]) -> tuple[tuple[int, int], int]:
        """((height, width), patches) of an image of this size."""
        resized = resized_size(*size, self.config)
        return size, resized[0] * resized[1] // self.config.vision.patch_size**2


def element_needs(pairs: Sequence[tuple[Need, ...]]) -> tuple[Need, ...]:
    """The items of an element: queries on one image together, every target alone."""
    together = [[pairs[i][0] for i in numbers] for numbers in by_first_image([pair[0] for pair in pairs])]
    return (*map(need_together, together), *(target for _, *targets in pairs for target in targets))


def measured_needs(
    source: PairSource, measure: LengthMeasure, *, count: int, seed: int = 0, weight: float = 1.0
) -> NeedSource:
    """Needs of `count` elements of a source (all, where it has fewer), drawn without repetition; bad ones are passed
    over as the loader passes over them.

    Raises:
        InvalidExample: where more than half cannot be read; says what is wrong with the last.
    """
    rows = np.random.default_rng(seed).permutation(len(source))[:count]
    elements, pairs, errors = [], [], []
    for row in rows.tolist():
        element = read_row(source, row)
        needs = [p if isinstance(p, Unreadable) else readable(p.query.origin, measure.pair, p) for p in element]
        good = [need for need in needs if not isinstance(need, Unreadable)]
        if not good:
            errors.append(needs[-1].error)
            continue
        elements.append(element_needs(good))
        pairs.append(len(good))
    if len(errors) > len(elements):
        raise InvalidExample(f"{len(errors)} of {len(rows)} sampled rows cannot be read; {errors[-1]}")
    return NeedSource(elements, pairs, weight)
