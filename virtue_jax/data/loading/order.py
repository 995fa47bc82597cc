"""The endless order of the training data: element number -> row of a source, in constant time, from the seed alone."""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np

from virtue_jax.data.pair_source import PairSource

_CYCLE = 4096  # blocks after which the sources' turns repeat; weights are kept to one part in so many


class RowRef(NamedTuple):
    """A row of one of the sources."""

    source: int
    row: int


class ElementOrder:
    """`order[number]` is the RowRef of an element; every number from 0 on has one.

    Every source is shuffled anew each epoch, and each of its rows comes once in an epoch. The sources take turns in
    blocks of about `interleave` pairs: as many rows as hold so many pairs on average. Turns are dealt by weight: the
    pairs of a source have its share of all pairs; they repeat after a cycle of about 4096 blocks. `mean_pairs`: of an
    element.

    Args:
        lengths: rows of each source. pairs: pairs in all of them together (default: one a row).
        weights: of the sources, by pairs (default: equal).

    Raises:
        ValueError: an empty source, weights that are not one positive number per source, an interleave under 1.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        seed: int,
        pairs: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
        interleave: int = 1,
    ):
        if not lengths or not all(lengths):
            raise ValueError(f"sources with {list(lengths)} rows: expected at least one row in each")
        if interleave < 1:
            raise ValueError(f"interleave {interleave}: expected at least 1")
        weights = [1.0] * len(lengths) if weights is None else list(weights)
        if len(weights) != len(lengths) or any(not w > 0 for w in weights):
            raise ValueError(f"weights {weights}: expected a positive number for each of {len(lengths)} sources")
        per_row = [p / n for p, n in zip(pairs or lengths, lengths, strict=True)]
        blocks = [max(1, round(interleave / p)) for p in per_row]
        turns = _turns([w / (b * p) for w, b, p in zip(weights, blocks, per_row, strict=True)])
        self._sources = turns
        self._starts = np.cumsum([0, *(blocks[s] for s in turns)]).tolist()
        self._per_cycle = [0] * len(lengths)
        self._before = []  # of each block: rows that its source has given earlier in the cycle
        for source in turns:
            self._before.append(self._per_cycle[source])
            self._per_cycle[source] += blocks[source]
        self.mean_pairs = sum(blocks[s] * per_row[s] for s in turns) / self._starts[-1]
        seeds = np.random.SeedSequence(seed).generate_state(len(lengths)).tolist()
        self._shuffled = [
            grain.MapDataset.range(n).shuffle(seed=source_seed).repeat()
            for n, source_seed in zip(lengths, seeds, strict=True)
        ]

    @classmethod
    def of(cls, sources: Sequence[PairSource], **options) -> "ElementOrder":
        """The order of sources."""
        lengths = [len(source) for source in sources]
        return cls(lengths, pairs=[source.pairs for source in sources], **options)

    def __getitem__(self, number: int) -> RowRef:
        cycle, offset = divmod(number, self._starts[-1])
        block = bisect.bisect_right(self._starts, offset) - 1
        source = self._sources[block]
        place = cycle * self._per_cycle[source] + self._before[block] + offset - self._starts[block]
        return RowRef(source, int(self._shuffled[source][place]))


def _turns(shares: Sequence[float]) -> list[int]:
    """The sources of one cycle's blocks, each as evenly spread as its share allows."""
    if len(shares) == 1:
        return [0]
    counts = [max(1, round(_CYCLE * share / sum(shares))) for share in shares]
    return [source for _, source in sorted(((j + 0.5) / n, s) for s, n in enumerate(counts) for j in range(n))]
