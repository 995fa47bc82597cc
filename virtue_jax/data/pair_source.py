"""What gives training pairs by row: the one contract between data sets and whoever reads them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from virtue_jax.data.example import TrainingPair
from virtue_jax.data.unreadable import Unreadable, readable


class PairSource(Protocol):
    """Random access to training pairs by row; pickles.

    A row is one pair, or several whose queries share a row of the batch where they share an image. Whatever the data
    of a pair provokes makes an `Unreadable` of it: reading raises only for a row that does not exist. `pairs`: those of
    all rows together. `origin(row)` names file and row to people.
    """

    pairs: int

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> tuple[TrainingPair | Unreadable, ...]: ...

    def origin(self, row: int) -> str: ...


class PairRows(ABC):
    """A `PairSource` of one pair a row, which `pair(row)` reads or raises for."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def origin(self, row: int) -> str: ...

    @abstractmethod
    def pair(self, row: int) -> TrainingPair:
        """The row's pair.

        Raises:
            InvalidExample: names file, row and remedy. Exception: whatever else the row provokes.
        """

    @property
    def pairs(self) -> int:
        return len(self)

    def __getitem__(self, row: int) -> tuple[TrainingPair | Unreadable, ...]:
        check_row(row, len(self))
        return (readable(self.origin(row), self.pair, row),)


def check_row(row: int, length: int) -> None:
    """Raises `IndexError` for a row that does not exist."""
    if not 0 <= row < length:
        raise IndexError(f"row {row} of {length}")


def pair_origin(source: PairSource, row: int, element: Sequence[TrainingPair | Unreadable], pair: TrainingPair) -> str:
    """File and row of one of a row's pairs."""
    return source.origin(row) if len(element) == 1 else pair.query.origin
