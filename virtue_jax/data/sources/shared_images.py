"""Training pairs grouped by image, so that the queries on one image share a row and one run of the image towers; and
the first rows of a source."""

from collections.abc import Sequence
from typing import Protocol

from virtue_jax.data.example import BadPair, InvalidExample, PairSource, TrainingPair


class ByImage(Protocol):
    """A source that can tell which of its rows ask about the same image: `ScarTraining`."""

    def __getitem__(self, row: int) -> TrainingPair: ...

    def rows_by_image(self) -> dict[object, list[int]]: ...

    def origin(self, row: int) -> str: ...


class SharedImages:
    """Groups of at most `size` rows of one image; an image with more rows makes several groups, none is dropped.

    A `PairSource` whose rows are tuples of pairs. Groups are formed once, in the files' order, of the first `limit`
    rows (0 = all).
    """

    def __init__(self, rows: ByImage, size: int, limit: int = 0):
        self.rows = rows
        chosen = [[row for row in same if not limit or row < limit] for same in rows.rows_by_image().values()]
        self.groups = [tuple(same[start : start + size]) for same in chosen for start in range(0, len(same), size)]
        self.pairs = sum(map(len, self.groups))

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, group: int) -> tuple[TrainingPair, ...]:
        return tuple(self.rows[row] for row in self.groups[group])

    def good_and_bad(self, group: int) -> tuple[TrainingPair | BadPair, ...]:
        """The group's pairs, those that cannot be read by name."""
        return tuple(map(self._pair, self.groups[group]))

    def _pair(self, row: int) -> TrainingPair | BadPair:
        try:
            return self.rows[row]
        except (InvalidExample, OSError) as error:
            return BadPair(self.rows.origin(row), str(error))

    def origin(self, group: int) -> str:
        return ", ".join(self.rows.origin(row) for row in self.groups[group])


class FirstRows:
    """The first `limit` rows of a source."""

    def __init__(self, rows: PairSource, limit: int):
        self.rows = rows
        self._length = min(limit, len(rows))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> TrainingPair | Sequence[TrainingPair]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.rows[row]

    def origin(self, row: int) -> str:
        return self.rows.origin(row)
