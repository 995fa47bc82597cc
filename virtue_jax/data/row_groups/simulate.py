"""Packing without data: the loader's streams, run on needs alone; how full rows get."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

from virtue_jax.batch import RowShape
from virtue_jax.data.loading.elements import Element
from virtue_jax.data.loading.order import ElementOrder
from virtue_jax.data.loading.stream import Stream, StreamRules, StreamState
from virtue_jax.data.packing.first_fit import Fit, Groups
from virtue_jax.data.packing.need import Need


class NeedSource(NamedTuple):
    """Needs of a sample of one source's elements, used round and round.

    elements[i]: needs of the items of element i, which is `pairs[i]` pairs, each with one query. Images that are not
    the same have different identities, in all sources of a mixture.
    """

    elements: Sequence[Sequence[Need]]
    pairs: Sequence[int]
    weight: float = 1.0


@dataclass(frozen=True)
class GroupFigures:
    """One row group over a whole simulation: real tokens and slots, real patches and their capacity, SAM runs and
    theirs; the most examples of one row."""

    tokens: int
    slots: int
    patches: int
    patch_capacity: int
    runs: int
    run_capacity: int
    most_examples: int

    @property
    def row_efficiency(self) -> float:
        return self.tokens / max(self.slots, 1)

    @property
    def patch_efficiency(self) -> float:
        return self.patches / max(self.patch_capacity, 1)


@dataclass(frozen=True)
class PackingFigures:
    """groups: per row group. pairs: placed per step (mean), all streams together. waiting: mean share of the batch that
    waits after a step. longest_wait: steps that the longest-waiting element had waited when it was placed."""

    groups: tuple[GroupFigures, ...]
    pairs: float
    waiting: float
    longest_wait: int

    @property
    def row_efficiency(self) -> float:
        """Real tokens / slots of all groups."""
        return sum(g.tokens for g in self.groups) / max(sum(g.slots for g in self.groups), 1)

    @property
    def patch_efficiency(self) -> float:
        return sum(g.patches for g in self.groups) / max(sum(g.patch_capacity for g in self.groups), 1)


class SampleOrder:
    """The loader's order over samples, each place looked up once: (source, element) of a number.

    Streams read from it as from a `ReadPool`: elements that are there at once, with needs in place of arrays.
    """

    def __init__(self, sources: Sequence[NeedSource], interleave: int):
        self._sources = sources
        self._order = ElementOrder(
            [len(source.elements) for source in sources],
            seed=0,
            pairs=[sum(source.pairs) for source in sources],
            weights=[source.weight for source in sources],
            interleave=interleave,
        )
        self._elements: dict[int, Future[Element]] = {}

    def __getitem__(self, number: int) -> tuple[int, int]:
        return tuple(self._order[number])

    def read(self, number: int) -> Future[Element]:
        if number not in self._elements:
            source, element = self[number]
            sample = self._sources[source]
            read = self._elements[number] = Future()
            read.set_result(Element(number, sample.pairs[element], needs=tuple(sample.elements[element])))
        return self._elements[number]


def simulate(
    order: SampleOrder,
    groups: Groups,
    *,
    batch_size: int,
    streams: int,
    steps: int = 20,
    warmup: int = 0,
    only: int = 0,
) -> PackingFigures:
    """Packs `steps` steps after `warmup` uncounted ones; `groups` give the rows of all streams together.

    only: simulate just so many of the streams (0 = all) and scale up: streams are alike.
    """
    of_stream = [(shape, rows // streams) for shape, rows in groups]
    rules = StreamRules(batch_size // streams)
    run = [Stream(order, s, streams, StreamState(), rules) for s in range(min(only or streams, streams))]
    totals, pairs, waits, longest = [_Totals() for _ in groups], 0, 0, 0
    waiting_since: dict[int, int] = {}
    for step in range(warmup + steps):
        for stream in run:
            elements, fit = stream.fit(of_stream)
            placed = [e for e, places in zip(elements, fit.places, strict=True) if places is not None]
            oldest = min((waiting_since.pop(element.number, step) for element in placed), default=step)
            for element in stream.waiting:
                waiting_since.setdefault(element.number, step)
            if step >= warmup:
                _count(totals, elements, fit, of_stream)
                pairs += sum(element.pairs for element in placed)
                longest = max(longest, step - oldest)
                waits += sum(element.pairs for element in stream.waiting)
    scale = streams / (len(run) * steps)
    return PackingFigures(tuple(t.figures() for t in totals), pairs * scale, waits * scale / batch_size, longest)


def most_pairs(order: SampleOrder, *, batch_size: int, streams: int, steps: int = 20) -> float:
    """Pairs that a step draws (mean) where nothing ever waits: fewer than the batch where elements of several pairs do
    not divide it."""
    stream, pairs = Stream(order, 0, streams, StreamState(), StreamRules(batch_size // streams)), 0
    for _ in range(steps):
        _, elements = stream.draw()
        pairs += sum(element.pairs for element in elements)
        stream.placed({element.number for element in elements})
    return pairs * streams / steps


class _Totals:
    """Sums and maxima of one group over steps."""

    def __init__(self):
        self.sums, self.most_examples = [0] * 6, 0

    def figures(self) -> GroupFigures:
        return GroupFigures(*self.sums, self.most_examples)

    def add(self, used: dict[int, list[int]], held: dict, shape: RowShape, rows: int) -> None:
        """used: [tokens, examples] by row; held: {(row, image): (patches, prompted)}."""
        patches, runs = (sum(column) for column in zip(*held.values(), strict=True)) if held else (0, 0)
        real = (sum(tokens for tokens, _ in used.values()), patches, runs)
        room = (shape.slots, shape.vision_rows * shape.patches, shape.images)
        for i in range(3):
            self.sums[2 * i] += real[i]
            self.sums[2 * i + 1] += rows * room[i]
        self.most_examples = max([self.most_examples, *(examples for _, examples in used.values())])


def _count(totals: list[_Totals], elements: Sequence[Element], fit: Fit, groups: Groups) -> None:
    used: list[dict[int, list[int]]] = [{} for _ in groups]
    held: list[dict] = [{} for _ in groups]
    for element, places in zip(elements, fit.places, strict=True):
        for need, (group, row) in zip(element.needs, places or (), strict=places is not None):
            use = used[group].setdefault(row, [0, 0])
            use[0] += need.slots
            use[1] += need.examples
            for key, patches, prompted in need.images:
                known = held[group].get((row, key))
                held[group][row, key] = (patches, prompted or (known is not None and known[1]))
    for total, use, images, (shape, rows) in zip(totals, used, held, groups, strict=True):
        total.add(use, images, shape, rows)
