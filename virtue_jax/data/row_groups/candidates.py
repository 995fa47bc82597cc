"""Row groups worth trying for a demand, from means alone: how many images a row should hold, and how many such rows."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from virtue_jax.data.packing.need import Need

LONGEST_ROW = 8192
_BUCKETS = (0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.87, 0.95)  # quantiles of the images' patches at which buckets may end
_MARGINS = (0.0, 0.7, 1.4)  # room beside the mean of a row's examples, in standard deviations of their sum
_MOST_IMAGES = 5  # of a row; more only where that is a smaller share of a longer row
_SMALLEST_SHARE = 0.02  # of all images, for a bucket of its own


class GroupSize(NamedTuple):
    """rows: in units (lcm of streams and devices). patches = 0: a text-only group."""

    slots: int
    patches: int
    vision_rows: int
    images: int
    rows: int


GroupSizes = tuple[GroupSize, ...]


@dataclass(frozen=True)
class Sample:
    """What a step has to hold. images, texts: items of `elements` sampled elements in the data's order; one step draws
    `per_step` elements. unit, slot_step, patch_step: rows, slots and patches of a group are multiples of them.
    largest_patches: of any image there can be. longest: slots of the longest item of the whole sample."""

    images: Sequence[Need]
    texts: Sequence[Need]
    elements: int
    per_step: float
    unit: int
    slot_step: int
    patch_step: int
    largest_patches: int
    longest: int


def round_up(n: float, step: int) -> int:
    return -(-math.ceil(n) // step) * step


def text_rows(sample: Sample, alone: bool) -> GroupSize:
    """One unit of text rows beside rows with images, or as many as hold all texts."""
    length = max(512, round_up(max(need.slots for need in sample.texts), sample.slot_step))
    total = sum(need.slots for need in sample.texts) * sample.per_step / sample.elements
    return GroupSize(length, 0, 0, 0, max(1, math.ceil(total / 0.97 / length / sample.unit)) if alone else 1)


def candidates(sample: Sample) -> Iterator[GroupSizes]:
    """Divisions of the images into at most three buckets, each in several shapes; text goes into what room is left."""
    if not sample.images:
        yield (text_rows(sample, alone=True),)
        return
    slots = np.array([need.slots for need in sample.images])
    patches = np.array([sum(image[1] for image in need.images) for need in sample.images])
    largest = np.array([max(image[1] for image in need.images) for need in sample.images])
    top = round_up(sample.largest_patches, sample.patch_step)
    ends = {round_up(np.quantile(largest, q), sample.patch_step) for q in _BUCKETS}
    ends = sorted(end for end in ends if end < top)
    most = max(_MOST_IMAGES, int(1024 // slots.mean()))
    for count in range(min(2, len(ends)) + 1):
        for lower in itertools.combinations(ends, count):
            bucket = np.searchsorted((*lower, top), largest)
            classes = [_Class.of(slots, patches, bucket == b, sample) for b in range(count + 1)]
            if min(c.per_step for c in classes) < _SMALLEST_SHARE * sum(c.per_step for c in classes):
                continue
            yield from _of_division((*lower, top), classes, most, sample)


class _Class(NamedTuple):
    """Images of one bucket: how many a step has, mean and spread of their examples' slots, mean patches; `text` is
    the text that comes with each, which shares the rows."""

    per_step: float
    slots: float
    spread: float
    patches: float
    text: float

    @classmethod
    def of(cls, slots, patches, inside, sample: Sample) -> "_Class":
        chosen = inside if inside.any() else np.ones_like(inside)
        text = sum(need.slots for need in sample.texts) / len(sample.images)
        rate = inside.sum() * sample.per_step / sample.elements
        return cls(rate, slots[chosen].mean(), slots[chosen].std(), patches[chosen].mean(), text)


def _of_division(ends: Sequence[int], classes: Sequence[_Class], most: int, sample: Sample) -> Iterator[GroupSizes]:
    for images in itertools.product(range(1, most + 1), repeat=len(ends)):
        for counts in _row_counts(images, classes, sample.unit):
            for margin in _MARGINS:
                least = (*[0] * (len(ends) - 1), sample.longest)
                groups = tuple(
                    _group(*each, margin, sample.slot_step)
                    for each in zip(ends, images, counts, classes, least, strict=True)
                    if each[2]
                )
                if all(group.slots <= LONGEST_ROW for group in groups):
                    yield groups


def _row_counts(images: Sequence[int], classes: Sequence[_Class], unit: int) -> Iterator[tuple[int, ...]]:
    """Units of rows of each group: what a larger bucket has left over is taken off the smaller ones."""

    def down(group: int, spare: float) -> Iterator[tuple[int, ...]]:
        if group < 0:
            if spare >= -0.02 * sum(c.per_step for c in classes):
                yield ()
            return
        wanted = (classes[group].per_step - spare) / (images[group] * unit)
        last = group == len(classes) - 1
        for count in {max(int(last), math.floor(wanted)), max(int(last), math.ceil(wanted))}:
            left = spare + count * images[group] * unit - classes[group].per_step
            if last and left < 0:
                continue
            for rest in down(group - 1, left):
                yield (*rest, count)

    yield from down(len(classes) - 1, 0.0)


def _group(end: int, images: int, rows: int, kind: _Class, longest: int, margin: float, step: int) -> GroupSize:
    slots = images * (kind.slots + kind.text) + margin * kind.spread * math.sqrt(images)
    vision = math.ceil(images * kind.patches / (0.98 * end))
    return GroupSize(round_up(max(slots, longest), step), end, min(max(vision, 1), images), images, rows)
