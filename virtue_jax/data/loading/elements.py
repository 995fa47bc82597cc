"""Elements of the training data: one pair, or several on one image, read, encoded and measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from virtue_jax.data.encoding.encode import EncodedExample, EncodedImage, ExampleEncoder
from virtue_jax.data.example import Example, InvalidExample, TrainingPair
from virtue_jax.data.identity import content_id
from virtue_jax.data.loading.order import ElementOrder
from virtue_jax.data.packing.first_fit import Groups, Need, fits_a_row, misfit
from virtue_jax.data.packing.pack import Label
from virtue_jax.data.pair_source import PairSource, pair_origin
from virtue_jax.data.unreadable import Unreadable, readable


class Segment(NamedTuple):
    """One example of a row, and what it is to the loss."""

    example: EncodedExample
    label: Label


@dataclass(frozen=True)
class Element:
    """items: segments that go into one row each; needs: what these take; pairs: how many queries there are."""

    number: int
    pairs: int
    items: tuple[tuple[Segment, ...], ...]
    needs: tuple[Need, ...]


@dataclass(frozen=True)
class BadElement:
    """An element, or one pair of an element, that cannot be read, encoded or packed, and why."""

    number: int
    origin: str
    error: str


class Reading(NamedTuple):
    """What is left of an element without its bad pairs, None = nothing; and these."""

    element: Element | None
    bad: tuple[BadElement, ...] = ()


class _Pair(NamedTuple):
    """An encoded pair: the query and its targets."""

    origin: str
    query: Segment
    targets: tuple[Segment, ...]


@dataclass(frozen=True)
class ElementReader:
    """`reader[number]` reads, encodes and measures an element without its bad pairs; the same on every machine, and
    picklable.

    groups: the rows that one stream has in a step; step_pairs: the pairs that it has at most. negatives: hard negatives
    per pair; of a pair that has more, others are drawn each time, and likewise of positives beyond what rows can hold.
    pixels: dtype that images are packed in.
    """

    sources: Sequence[PairSource]
    order: ElementOrder
    encoder: ExampleEncoder
    groups: Groups
    step_pairs: int
    negatives: int = 0
    seed: int = 0
    pixels: str = "float32"

    def __getitem__(self, number: int) -> Reading:
        ref = self.order[number]
        shared: dict[str, EncodedImage] = {}
        good, bad = [], []
        source = self.sources[ref.source]
        element = source[ref.row]
        for place, pair in enumerate(element):
            if not isinstance(pair, Unreadable):
                origin = pair_origin(source, ref.row, element, pair)
                pair = readable(origin, self._pair, pair, origin, (number, place), shared)
            if isinstance(pair, Unreadable):
                bad.append(BadElement(number, *pair))
            else:
                good.append(pair)
        element = self._element(number, good) if good else None
        wrong = self._too_large(element) if element is not None else None
        if wrong is not None:
            bad += [BadElement(number, pair.origin, f"{pair.origin}: {wrong}") for pair in good]
            return Reading(None, tuple(bad))
        return Reading(element, tuple(bad))

    def _pair(self, pair: TrainingPair, origin: str, place: tuple[int, int], shared: dict[str, EncodedImage]) -> _Pair:
        most = max(shape.positives for shape, _ in self.groups)
        positives = self._draw(pair.positives, most, (*place, 1))
        query = self.encoder.encode(pair.query, shared=shared, pixels=self.pixels)
        targets = []
        for target in (*positives, *self._draw(pair.negatives, self.negatives, place)):
            encoded = self.encoder.encode(target, shared=shared, pixels=self.pixels)
            targets.append(Segment(encoded, Label.target(content_id(target))))
        label = Label.query(*dict.fromkeys(map(content_id, positives)))
        encoded = _Pair(origin, Segment(query, label), tuple(targets))
        wrong = misfit([item_need([segment]) for segment in (encoded.query, *targets)], self.groups)
        if wrong is not None:
            raise InvalidExample(f"{origin}: too large to be packed: {wrong}")
        return encoded

    def _element(self, number: int, pairs: Sequence[_Pair]) -> Element:
        targets = [(segment,) for pair in pairs for segment in pair.targets]
        items = [*self._rows_of([pair.query for pair in pairs]), *targets]
        return Element(number, len(pairs), tuple(items), tuple(map(item_need, items)))

    def _draw(self, examples: Sequence[Example], most: int, place: tuple[int, ...]) -> list[Example]:
        if len(examples) <= most:
            return list(examples)
        order = np.random.default_rng([self.seed, *place]).permutation(len(examples))
        return [examples[i] for i in sorted(order[:most].tolist())]

    def _rows_of(self, queries: Sequence[Segment]) -> list[tuple[Segment, ...]]:
        """Queries on one image together, as many as a row holds."""
        rows: dict[str, list[list[Segment]]] = {}
        for number, segment in enumerate(queries):
            images = segment.example.images
            same = rows.setdefault(images[0].key if images else f"text {number}", [])
            if same and fits_a_row(item_need([*same[-1], segment]), self.groups):
                same[-1].append(segment)
            else:
                same.append([segment])
        return [tuple(row) for same in rows.values() for row in same]

    def _too_large(self, element: Element) -> str | None:
        if element.pairs > self.step_pairs:
            return (
                f"{element.pairs} pairs that belong together, more than the {self.step_pairs} that a stream "
                "has in a step; take a larger batch_size, fewer streams or a smaller share_images"
            )
        wrong = misfit(element.needs, self.groups) if element.pairs > 1 else None
        return None if wrong is None else f"too large to be packed: {wrong}"


def item_need(segments: Sequence[Segment]) -> Need:
    """What segments that share a row take of it."""
    images: dict[str, tuple[str, int, bool]] = {}
    prompts = [segment.example.prompt for segment in segments if segment.example.prompt is not None]
    for example, _ in segments:
        for i, image in enumerate(example.images):
            prompted = example.prompt is not None and i == 0
            known = images.get(image.key)
            images[image.key] = (image.key, len(image.patches), prompted or (known is not None and known[2]))
    return Need(
        slots=sum(len(segment.example) for segment in segments),
        images=tuple(images.values()),
        examples=len(segments),
        prompts=len(prompts),
        points=max((len(prompt.labels) for prompt in prompts), default=0),
        masks=any(prompt.mask is not None for prompt in prompts),
        positives=max(len(segment.label.positives) for segment in segments),
    )
