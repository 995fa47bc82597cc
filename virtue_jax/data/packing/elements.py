"""Elements of the training data: one pair, or several on one image, read, encoded and measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from virtue_jax.data.encoding.encode import EncodedExample, EncodedImage, ExampleEncoder
from virtue_jax.data.example import Example, InvalidExample, PairSource, TrainingPair
from virtue_jax.data.packing.content import content_id
from virtue_jax.data.packing.element_order import ElementOrder
from virtue_jax.data.packing.first_fit import Groups, Need, fits_a_row, misfit
from virtue_jax.data.packing.pack import Label


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
    """An element that cannot be read, encoded or packed, and why."""

    number: int
    origin: str
    error: str


@dataclass(frozen=True)
class ElementReader:
    """`reader[number]` reads, encodes and measures an element; the same on every machine, and picklable.

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

    def __getitem__(self, number: int) -> Element | BadElement:
        ref = self.order[number]
        source = self.sources[ref.source]
        try:
            drawn = source[ref.row]
            return self._element(number, (drawn,) if isinstance(drawn, TrainingPair) else tuple(drawn))
        except (InvalidExample, OSError) as error:
            named = getattr(source, "origin", None)
            origin = named(ref.row) if named is not None else f"row {ref.row} of source {ref.source}"
            return BadElement(number, origin, str(error))

    def _element(self, number: int, pairs: tuple[TrainingPair, ...]) -> Element:
        shared: dict[str, EncodedImage] = {}
        queries, items = [], []
        for place, pair in enumerate(pairs):
            most = max(shape.positives for shape, _ in self.groups)
            positives = self._draw(pair.positives, most, (number, place, 1))
            negatives = self._draw(pair.negatives, self.negatives, (number, place))
            query = self.encoder.encode(pair.query, shared=shared, pixels=self.pixels)
            queries.append(Segment(query, Label.query(*dict.fromkeys(map(content_id, positives)))))
            for target in (*positives, *negatives):
                encoded = self.encoder.encode(target, shared=shared, pixels=self.pixels)
                items.append((Segment(encoded, Label.target(content_id(target))),))
        items = [*self._rows_of(queries), *items]
        element = Element(number, len(pairs), tuple(items), tuple(map(item_need, items)))
        self._check(element, pairs[0].query.origin)
        return element

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

    def _check(self, element: Element, origin: str) -> None:
        if element.pairs > self.step_pairs:
            raise InvalidExample(
                f"{origin}: {element.pairs} pairs that belong together, more than the {self.step_pairs} that a stream "
                "has in a step; take a larger batch_size, fewer streams or a smaller share_images"
            )
        wrong = misfit(element.needs, self.groups)
        if wrong is not None:
            raise InvalidExample(f"{origin}: too large to be packed: {wrong}")


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
