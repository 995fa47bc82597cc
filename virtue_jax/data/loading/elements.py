"""Elements of the training data: one pair, or several on one image, read, encoded and measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from virtue_jax.data.encoding.encode import EncodedExample, EncodedImage, ExampleEncoder, Label
from virtue_jax.data.example import Example, InvalidExample, TrainingPair
from virtue_jax.data.identity import content_id
from virtue_jax.data.loading.order import ElementOrder
from virtue_jax.data.packing.first_fit import Groups, fits_a_row, misfit
from virtue_jax.data.packing.need import Need, need_of
from virtue_jax.data.pair_source import PairSource, pair_origin
from virtue_jax.data.unreadable import Unreadable, readable


@dataclass(frozen=True)
class Element:
    """items: examples that go into one row each; needs: what these take; pairs: how many queries there are."""

    number: int
    pairs: int
    items: tuple[tuple[EncodedExample, ...], ...]
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
    query: EncodedExample
    targets: tuple[EncodedExample, ...]


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
        query = self._encode(pair.query, shared, Label.query(*dict.fromkeys(map(content_id, positives))))
        negatives = self._draw(pair.negatives, self.negatives, place)
        targets = [
            self._encode(target, shared, Label.target(content_id(target))) for target in (*positives, *negatives)
        ]
        wrong = misfit([need_of([example]) for example in (query, *targets)], self.groups)
        if wrong is not None:
            raise InvalidExample(f"{origin}: too large to be packed: {wrong}")
        return _Pair(origin, query, tuple(targets))

    def _encode(self, example: Example, shared: dict[str, EncodedImage], label: Label) -> EncodedExample:
        encoded = self.encoder.encode(example, shared=shared, pixels=self.pixels)
        return replace(encoded, label=label)

    def _element(self, number: int, pairs: Sequence[_Pair]) -> Element:
        targets = [(example,) for pair in pairs for example in pair.targets]
        items = [*self._rows_of([pair.query for pair in pairs]), *targets]
        return Element(number, len(pairs), tuple(items), tuple(map(need_of, items)))

    def _draw(self, examples: Sequence[Example], most: int, place: tuple[int, ...]) -> list[Example]:
        if len(examples) <= most:
            return list(examples)
        order = np.random.default_rng([self.seed, *place]).permutation(len(examples))
        return [examples[i] for i in sorted(order[:most].tolist())]

    def _rows_of(self, queries: Sequence[EncodedExample]) -> list[tuple[EncodedExample, ...]]:
        """Queries on one image together, as many as a row holds."""
        rows: dict[str, list[list[EncodedExample]]] = {}
        for number, query in enumerate(queries):
            same = rows.setdefault(query.images[0].key if query.images else f"text {number}", [])
            if same and fits_a_row(need_of([*same[-1], query]), self.groups):
                same[-1].append(query)
            else:
                same.append([query])
        return [tuple(row) for same in rows.values() for row in same]

    def _too_large(self, element: Element) -> str | None:
        if element.pairs > self.step_pairs:
            return (
                f"{element.pairs} pairs that belong together, more than the {self.step_pairs} that a stream "
                "has in a step; take a larger batch_size, fewer streams or a smaller share_images"
            )
        wrong = misfit(element.needs, self.groups) if element.pairs > 1 else None
        return None if wrong is None else f"too large to be packed: {wrong}"
