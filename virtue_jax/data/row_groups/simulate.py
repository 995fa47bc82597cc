"""Packing without data: the loader's rule for streams and waiting elements, run on needs alone; how full rows get."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from virtue_jax.batch import RowShape
from virtue_jax.data.loading.order import ElementOrder
from virtue_jax.data.packing.first_fit import Fit, Groups, first_fit
from virtue_jax.data.packing.need import Need

Element = Sequence[Need]  # the items of one or several pairs; each pair has one query


class NeedSource(NamedTuple):
    """Needs of a sample of one source's elements, used round and round; `pairs[i]`: how many pairs element i is.

    Images that are not the same have different identities, in all sources of a mixture.
    """

    elements: Sequence[Element]
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
    """The loader's order over samples, each place looked up once: (source, element) of a number."""

    def __init__(self, sources: Sequence[NeedSource], interleave: int):
        self._order = ElementOrder(
            [len(source.elements) for source in sources],
            seed=0,
            pairs=[sum(source.pairs) for source in sources],
            weights=[source.weight for source in sources],
            interleave=interleave,
        )
        self._known: dict[int, tuple[int, int]] = {}

    def __getitem__(self, number: int) -> tuple[int, int]:
        if number not in self._known:
            self._known[number] = self._order[number]
        return self._known[number]


def simulate(
    sources: Sequence[NeedSource],
    groups: Groups,
    *,
    batch_size: int,
    streams: int,
    order: SampleOrder,
    steps: int = 20,
    warmup: int = 0,
    only: int = 0,
) -> PackingFigures:
    """Packs `steps` steps after `warmup` uncounted ones; `groups` give the rows of all streams together.

    only: simulate just so many of the streams (0 = all) and scale up: streams are alike.
    """
    of_stream = [(shape, rows // streams) for shape, rows in groups]
    run = [_Stream(sources, order, s, streams, batch_size // streams) for s in range(min(only or streams, streams))]
    totals, pairs, waits, longest = [_Totals() for _ in groups], 0, 0, 0
    for step in range(warmup + steps):
        for stream in run:
            waited = len(stream.waiting)
            candidates = [drawn.element for drawn in stream.candidates(step)]
            fit = first_fit(candidates, of_stream, waited)
            placed, oldest = stream.placed(fit.places)
            if step >= warmup:
                _count(totals, candidates, fit, of_stream)
                pairs += placed
                longest = max(longest, step - oldest)
                waits += sum(drawn.pairs for drawn in stream.waiting)
    scale = streams / (len(run) * steps)
    return PackingFigures(tuple(t.figures() for t in totals), pairs * scale, waits * scale / batch_size, longest)


def most_pairs(
    sources: Sequence[NeedSource], *, batch_size: int, streams: int, order: SampleOrder, steps: int = 20
) -> float:
    """Pairs that a step draws (mean) where nothing ever waits: fewer than the batch where elements of several pairs do
    not divide it."""
    stream, pairs = _Stream(sources, order, 0, streams, batch_size // streams), 0
    for step in range(steps):
        pairs += stream.placed([()] * len(stream.candidates(step)))[0]
    return pairs * streams / steps


class _Drawn(NamedTuple):
    element: Element
    pairs: int
    step: int


class _Stream:
    """As `streams.Stream`, without reading."""

    def __init__(self, sources: Sequence[NeedSource], order: SampleOrder, index: int, of: int, pairs: int):
        self._sources, self._order, self._next, self._of, self._pairs = sources, order, index, of, pairs
        self.waiting: list[_Drawn] = []

    def candidates(self, step: int) -> list[_Drawn]:
        room, taken = self._pairs, 0
        while room > 0:
            if taken == len(self.waiting):
                source, element = self._order[self._next]
                self._next += self._of
                drawn = self._sources[source]
                self.waiting.append(_Drawn(drawn.elements[element], drawn.pairs[element], step))
            room -= self.waiting[taken].pairs
            taken += room >= 0
        return self.waiting[:taken]

    def placed(self, places: Sequence) -> tuple[int, int]:
        """(pairs placed, step in which the oldest of them was drawn)"""
        done = [drawn for drawn, place in zip(self.waiting, places, strict=False) if place is not None]
        left = [drawn for drawn, place in zip(self.waiting, places, strict=False) if place is None]
        self.waiting = left + self.waiting[len(places) :]
        return sum(drawn.pairs for drawn in done), min((drawn.step for drawn in done), default=0)


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


def _count(totals: list[_Totals], candidates: Sequence[Element], fit: Fit, groups: Groups) -> None:
    used: list[dict[int, list[int]]] = [{} for _ in groups]
    held: list[dict] = [{} for _ in groups]
    for element, places in zip(candidates, fit.places, strict=True):
        for need, (group, row) in zip(element, places or (), strict=False):
            use = used[group].setdefault(row, [0, 0])
            use[0] += need.slots
            use[1] += need.examples
            for key, patches, prompted in need.images:
                known = held[group].get((row, key))
                held[group][row, key] = (patches, prompted or (known is not None and known[1]))
    for total, use, images, (shape, rows) in zip(totals, used, held, groups, strict=True):
        total.add(use, images, shape, rows)
