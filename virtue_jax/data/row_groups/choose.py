"""Row groups chosen from lengths: static capacities under which a step costs least for each pair that it places.

What a step costs is given by a function of the row shape (training: the FLOPs that the compiled step executes, so that
a vision row's square and an unused SAM run count as what they are). The search is deterministic: the cheapest of
`candidates.py` are judged by packing a sample of elements with the loader's own rule (`simulate.py`), and
the best of them improved one number at a time.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from virtue_jax.batch import RowShape
from virtue_jax.data.row_groups.candidates import (
    LONGEST_ROW,
    GroupSize,
    GroupSizes,
    Sample,
    candidates,
    text_rows,
)
from virtue_jax.data.row_groups.simulate import NeedSource, PackingFigures, SampleOrder, most_pairs, simulate

FIT = 0.97  # share of its pairs that a step must place on average; rows are fuller where some elements wait
ROW_EFFICIENCY = 0.93  # below this, groups count as dearer than they are, by the share that is lacking
_SAMPLE = 2000  # elements that the candidates are made from
_PACKED, _BEST, _TRIED = 150, 3, 150  # candidates packed; of these improved; packings tried for each that is
_LONGER, _LONG = 12, (20, 20)  # groups compared in a longer run; its counted steps and those before them
_PAIRS = 256  # pairs of a step packed in the search, where streams are large enough


@dataclass(frozen=True)
class Chosen:
    """groups: (shape, rows over all streams), those with images first. figures: of a packing run on these groups.
    cost: of a step, in the unit of the cost function, for each pair that it places."""

    groups: tuple[tuple[RowShape, int], ...]
    figures: PackingFigures
    cost: float


@dataclass(frozen=True)
class Demand:
    """What the rows are for. devices: rows of each group must divide by it, and by the streams. largest_patches:
    patches of the largest image there can be, in the sample or not (0 = none has images). cost: of one row. slot_step,
    patch_step: slots and patches of a row are multiples of them. fit: share of the pairs drawn that is placed at least,
    on average. effort: multiplies the packings tried."""

    sources: Sequence[NeedSource]
    batch_size: int
    streams: int
    devices: int
    largest_patches: int
    cost: Callable[[RowShape], float]
    slot_step: int = 128
    patch_step: int = 128
    interleave: int = 64
    fit: float = FIT
    effort: float = 1.0

    @property
    def unit(self) -> int:
        return math.lcm(self.streams, self.devices)


def choose_rows(demand: Demand) -> Chosen:
    """Raises:
    ValueError: streams that do not divide the batch, or no rows to be had that hold the longest example.
    """
    if demand.batch_size % demand.streams:
        raise ValueError(
            f"batch_size {demand.batch_size} does not divide by {demand.streams} streams; choose a multiple"
        )
    search, tried = _Search(demand), round(_TRIED * demand.effort)
    best = sorted(search.cheapest(), key=search.score)[:_BEST]
    best = min((search.improve(groups, tried) for groups in best), key=search.score)
    if search.sample.texts and all(group.patches for group in best):
        search.improve((*best, text_rows(search.sample, alone=False)), tried // 2)
    return search.finish()


class _Search:
    def __init__(self, demand: Demand):
        self.demand = demand
        self.orders = functools.cache(lambda interleave: SampleOrder(demand.sources, interleave))
        order = self.orders(demand.interleave)
        batch = {"batch_size": demand.batch_size, "streams": demand.streams}
        self.wanted = demand.fit * most_pairs(order, **batch)  # pairs of a step
        drawn = [order[number] for number in range(_SAMPLE)]
        items = [need for s, e in drawn for need in demand.sources[s].elements[e]]
        pairs = sum(demand.sources[s].pairs[e] for s, e in drawn)
        everything = [need for source in demand.sources for element in source.elements for need in element]
        self.sample = Sample(
            images=[need for need in items if need.images],
            texts=[need for need in items if not need.images],
            elements=len(drawn),
            per_step=demand.batch_size * len(drawn) / pairs,
            unit=demand.unit,
            slot_step=demand.slot_step,
            patch_step=demand.patch_step,
            largest_patches=demand.largest_patches,
            longest=max(need.slots for need in everything),
        )
        most = {name: max(getattr(n, name) for n in everything) for name in ("points", "masks", "positives")}
        self.points, self.masks, self.positives = most["points"], bool(most["masks"]), max(1, most["positives"])
        self.prompts_per_image = max((-(-n.prompts // len(n.images)) for n in everything if n.images), default=0)
        self.steps = {"slots": demand.slot_step, "patches": demand.patch_step}
        self.moves = _moves(demand.slot_step)
        self.cost = functools.cache(demand.cost)
        self.scores: dict[GroupSizes, float] = {}

    def cheapest(self) -> list[GroupSizes]:
        """The candidates that cost least among those with room for all tokens."""
        sample = self.sample
        tokens = sum(n.slots for n in (*sample.images, *sample.texts)) * sample.per_step / sample.elements
        room = {groups: sum(g.rows * g.slots for g in groups) * sample.unit for groups in candidates(sample)}
        if not room:
            raise ValueError(f"an example of {sample.longest} tokens: rows have at most {LONGEST_ROW}; shorten it")
        enough = [groups for groups, slots in room.items() if slots >= 1.03 * self.demand.fit * tokens]
        return sorted(enough or room, key=self.price)[: round(_PACKED * self.demand.effort)]

    def improve(self, groups: GroupSizes, most: int) -> GroupSizes:
        """The best groups reached by `_moves`, each repeated while it helps, in `most` packings."""
        tried = turn = failed = 0
        moves = self.moves
        while failed < len(groups) * len(moves) and tried < most:
            number, move = divmod(turn % (len(groups) * len(moves)), len(moves))
            moved = _moved(groups, number, self.steps, **moves[move])
            tried += moved is not None and moved not in self.scores
            if moved is not None and self.score(moved) < self.score(groups):
                groups, failed = moved, 0
            else:
                turn, failed = turn + 1, failed + 1
        return groups

    def score(self, groups: GroupSizes) -> float:
        """Cost for each placed pair, more where too few are placed or rows are not full; lower is better."""
        if groups not in self.scores:
            self.scores[groups] = self._score(groups) if self._possible(groups) else math.inf
        return self.scores[groups]

    def _score(self, groups: GroupSizes, steps: int = 6, warmup: int = 4) -> float:
        figures = self.run(groups, steps=steps, warmup=warmup)
        if not figures.pairs:
            return math.inf
        short = max(0.0, 1 - figures.pairs / self.wanted)
        empty = max(0.0, ROW_EFFICIENCY - figures.row_efficiency)
        return self.price(groups) / figures.pairs * (1 + 20 * short + 6 * empty)

    def _possible(self, groups: GroupSizes) -> bool:
        """Whether the longest item and the largest image have a row to go to, and buckets differ."""
        patches = [group.patches for group in groups if group.patches]
        if patches != sorted(set(patches)) or bool(patches) != bool(self.sample.images):
            return False
        last = groups[len(patches) - 1] if patches else groups[-1]
        return last.patches >= self.demand.largest_patches * bool(patches) and last.slots >= self.sample.longest

    def shape(self, group: GroupSize, examples: int = 0) -> RowShape:
        if not group.patches:
            return RowShape(group.slots, examples or group.slots, self.positives)
        prompts = group.images * self.prompts_per_image
        return RowShape(
            slots=group.slots,
            examples=examples or group.slots,
            positives=self.positives,
            vision_rows=group.vision_rows,
            patches=group.patches,
            images=group.images if prompts else 0,
            prompts=prompts,
            points=self.points if prompts else 0,
            masks=self.masks,
        )

    def price(self, groups: GroupSizes) -> float:
        return sum(self.cost(self.shape(group)) * group.rows for group in groups) * self.demand.unit

    def run(self, groups: GroupSizes, *, steps: int, warmup: int) -> PackingFigures:
        """A packing run of a few streams, or of a part of a large one."""
        demand = self.demand
        pairs = demand.batch_size // demand.streams
        part = math.gcd(pairs, *(group.rows * demand.unit // demand.streams for group in groups))
        parts = max(n for n in range(1, part + 1) if part % n == 0 and (n == 1 or pairs // n >= _PAIRS))
        return simulate(
            self.orders(max(1, demand.interleave // parts)),
            [(self.shape(group), group.rows * demand.unit) for group in groups],
            batch_size=demand.batch_size,
            streams=demand.streams * parts,
            steps=steps,
            warmup=warmup,
            only=max(1, _PAIRS * parts // pairs),
        )

    def finish(self) -> Chosen:
        """The best groups by a longer run; more rows where it places fewer pairs than it should; then room for as many
        examples as came."""
        best = sorted(self.scores, key=self.scores.get)[: max(2, round(_LONGER * self.demand.effort))]
        groups = min(best, key=lambda groups: self._score(groups, *_LONG))
        figures = self.run(groups, steps=_LONG[0], warmup=_LONG[1])
        for _ in range(8):
            if figures.pairs >= 0.99 * self.wanted:
                break
            wider = [_moved(groups, number, self.steps, rows=1) for number in range(len(groups))]
            runs = [(self.run(each, steps=_LONG[0], warmup=_LONG[1]), each) for each in wider]
            gains = [(run.pairs - figures.pairs) / (self.price(each) - self.price(groups)) for run, each in runs]
            if max(gains) <= 0:
                break
            figures, groups = runs[int(np.argmax(gains))]
        final = []
        for group, seen in zip(groups, figures.groups, strict=True):
            examples = min(group.slots, -(-seen.most_examples * 5 // 16) * 4 + 4)
            final.append((self.shape(group, examples), group.rows * self.demand.unit))
        return Chosen(tuple(final), figures, self.price(groups) / figures.pairs)


def _moved(
    groups: GroupSizes, number: int, steps: dict, trade: int = 0, shift: int = 0, **by: int
) -> GroupSizes | None:
    """The groups after a change of one of them; None where that is not possible.

    by: added to fields, in `steps`. trade: rows added while a row's size shrinks so that the capacity stays. shift:
    rows added that the next group loses.
    """
    group, changed, step = groups[number], list(groups), steps["slots"]
    values = {name: getattr(group, name) + n * steps.get(name, 1) for name, n in by.items()}
    if trade and group.rows + trade > 0:
        ratio = group.rows / (group.rows + trade)
        values = {"slots": -(-int(group.slots * ratio) // step) * step}
        values |= {name: round(getattr(group, name) * ratio) for name in ("vision_rows", "images")}
    follower = (number + 1) % len(groups)
    changed[follower] = changed[follower]._replace(rows=changed[follower].rows - shift)
    changed[number] = changed[number]._replace(**{"rows": group.rows + trade + shift, **values})
    for old, new in zip(groups, changed, strict=True):
        least = min(new.vision_rows, new.images, new.patches) if old.patches else 1
        if new.rows < 0 or least < 1 or not step <= new.slots <= LONGEST_ROW or (not old.patches and new.images):
            return None
    return tuple(each for each in changed if each.rows) or None


def _moves(slot_step: int) -> tuple[dict[str, int], ...]:
    """Changes of one group. A further image comes with room for its example, about 640 slots."""
    far, example = 4 if slot_step < 512 else 2, max(1, round(640 / slot_step))
    return (
        {"rows": -1},
        {"rows": 1},
        {"shift": -1},
        {"shift": 1},
        {"slots": -1},
        {"slots": 1},
        {"slots": -far},
        {"slots": far},
        {"trade": -1},
        {"trade": 1},
        {"vision_rows": -1},
        {"vision_rows": 1},
        {"images": -1},
        {"images": 1},
        {"patches": -1},
        {"patches": 1},
        {"slots": example, "images": 1},
        {"slots": example, "images": 1, "vision_rows": 1},
    )
