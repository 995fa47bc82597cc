"""Elements of the training data: one pair, or several on one image, read, encoded and measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from virtue_jax.data.encoding.encode import EncodedExample, EncodedImage, ExampleEncoder, Label
from virtue_jax.data.example import Example, InvalidExample, TrainingPair
from virtue_jax.data.identity import content_id
from virtue_jax.data.loading.order import ElementOrder
from virtue_jax.data.packing.first_fit import Groups, fits_a_row, misfit
from virtue_jax.data.packing.invariants import check_packable
from virtue_jax.data.packing.need import Need, by_first_image, need_of
from virtue_jax.data.pair_source import PairSource, pair_origin, read_row
from virtue_jax.data.unreadable import Unreadable, readable

Pair = tuple[EncodedExample, ...]  # the query, then its targets


@dataclass(frozen=True)
class Element:
    """What is placed in one step whole or not at all.

    number: in the order. pairs: how many queries there are. items: examples that go into one row each; needs: what
    these take. bad: what of the element cannot be used; where that is everything, there are no pairs.
    """

    number: int
    pairs: int = 0
    items: tuple[tuple[EncodedExample, ...], ...] = ()
    needs: tuple[Need, ...] = ()
    bad: tuple[Unreadable, ...] = ()


@dataclass(frozen=True)
class ElementReader:
    """`reader[number]` reads, encodes and measures an element; the same on every machine, and picklable.

    Whatever the data of a pair provoke, in its source, the tokenizer, the encoder or the packer, leaves that pair out.

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

    def __getitem__(self, number: int) -> Element:
        ref = self.order[number]
        source = self.sources[ref.source]
        shared: dict[str, EncodedImage] = {}
        pairs: list[tuple[str, Pair]] = []
        bad: list[Unreadable] = []
        row = read_row(source, ref.row)
        for place, pair in enumerate(row):
            if not isinstance(pair, Unreadable):
                origin = pair_origin(source, ref.row, row, pair)
                pair = readable(origin, self._pair, pair, origin, (number, place), shared)
            if isinstance(pair, Unreadable):
                bad.append(pair)
            else:
                pairs.append((origin, pair))
        if not pairs:
            return Element(number, bad=tuple(bad))
        origins, encoded = zip(*pairs, strict=True)
        items = readable(origins[0], self._items, encoded)
        if isinstance(items, Unreadable):
            bad += [Unreadable(origin, f"{origin}: {items.error}") for origin in origins]
            return Element(number, bad=tuple(bad))
        return Element(number, len(pairs), items, tuple(map(need_of, items)), tuple(bad))

    def _pair(self, pair: TrainingPair, origin: str, place: tuple[int, int], shared: dict[str, EncodedImage]) -> Pair:
        most = max(shape.positives for shape, _ in self.groups)
        positives = self._draw(pair.positives, most, (*place, 1))
        query = self._encode(pair.query, shared, Label.query(*dict.fromkeys(map(content_id, positives))))
        targets = (*positives, *self._draw(pair.negatives, self.negatives, place))
        encoded = (query, *(self._encode(target, shared, Label.target(content_id(target))) for target in targets))
        wrong = misfit([need_of([example]) for example in encoded], self.groups)
        if wrong is not None:
            raise InvalidExample(f"{origin}: too large to be packed: {wrong}")
        return encoded

    def _encode(self, example: Example, shared: dict[str, EncodedImage], label: Label) -> EncodedExample:
        encoded = replace(self.encoder.encode(example, shared=shared, pixels=self.pixels), label=label)
        check_packable(encoded, self.encoder.config)
        return encoded

    def _draw(self, examples: Sequence[Example], most: int, place: tuple[int, ...]) -> list[Example]:
        if len(examples) <= most:
            return list(examples)
        order = np.random.default_rng([self.seed, *place]).permutation(len(examples))
        return [examples[i] for i in sorted(order[:most].tolist())]

    def _items(self, pairs: Sequence[Pair]) -> tuple[tuple[EncodedExample, ...], ...]:
        """Queries on one image together, as many as a row holds; every target alone."""
        if len(pairs) > self.step_pairs:
            raise InvalidExample(
                f"{len(pairs)} pairs that belong together, more than the {self.step_pairs} that a stream "
                "has in a step; take a larger batch_size, fewer streams or a smaller share_images"
            )
        rows: list[tuple[EncodedExample, ...]] = []
        for numbers in by_first_image([need_of(pair[:1]) for pair in pairs]):
            rows.append(pairs[numbers[0]][:1])
            for number in numbers[1:]:
                wider = (*rows[-1], pairs[number][0])
                if fits_a_row(need_of(wider), self.groups):
                    rows[-1] = wider
                else:
                    rows.append(pairs[number][:1])
        items = (*rows, *((target,) for _, *targets in pairs for target in targets))
        wrong = misfit(list(map(need_of, items)), self.groups) if len(pairs) > 1 else None
        if wrong is not None:
            raise InvalidExample(f"too large to be packed: {wrong}")
        return items
