"""Training pairs grouped by image, so that the queries on one image share a row and one run of the image towers; and
the first rows of a source."""

import itertools
from typing import Protocol

from virtue_jax.data.example import TrainingPair
from virtue_jax.data.pair_source import PairSource, check_row
from virtue_jax.data.unreadable import Unreadable


class RowsByImage(PairSource, Protocol):
    """A source that can tell which of its rows ask about the same image: `ScarTraining`."""

    def rows_by_image(self) -> dict[object, list[int]]: ...


class SharedImages:
    """Groups of at most `size` rows of one image; an image with more rows makes several groups, none is dropped.

    Groups are formed once, in the files' order, of the first `limit` rows (0 = all).
    """

    def __init__(self, source: RowsByImage, size: int, limit: int = 0):
        self.source = source
        by_image = [[row for row in rows if not limit or row < limit] for rows in source.rows_by_image().values()]
        self.groups = [tuple(rows[start : start + size]) for rows in by_image for start in range(0, len(rows), size)]
        self.pairs = sum(map(len, self.groups))

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, group: int) -> tuple[TrainingPair | Unreadable, ...]:
        check_row(group, len(self))
        return tuple(itertools.chain.from_iterable(self.source[row] for row in self.groups[group]))

    def origin(self, group: int) -> str:
        return ", ".join(self.source.origin(row) for row in self.groups[group])


class FirstRows:
    """The first `limit` rows of a source of one pair a row."""

    def __init__(self, source: PairSource, limit: int):
        self.source = source
        self.pairs = min(limit, len(source))

    def __len__(self) -> int:
        return self.pairs

    def __getitem__(self, row: int) -> tuple[TrainingPair | Unreadable, ...]:
        check_row(row, len(self))
        return self.source[row]

    def origin(self, row: int) -> str:
        return self.source.origin(row)
