"""What gives training pairs by row: the one contract between data sets and whoever reads them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from virtue_jax.data.example import TrainingPair
from virtue_jax.data.unreadable import Unreadable, readable, reason


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


def read_row(source: PairSource, row: int) -> tuple[TrainingPair | Unreadable, ...]:
    """What a source gives for a row, at least one pair; `Unreadable` for whatever else it gives or raises."""
    try:
        pairs = tuple(source[row])
        wrong = [pair for pair in pairs if not isinstance(pair, TrainingPair | Unreadable)]
        if wrong or not pairs:
            kinds = ", ".join(type(pair).__name__ for pair in wrong) or "nothing"
            raise TypeError(f"its source gives {kinds}, expected TrainingPairs")
        return pairs
    except Exception as error:
        origin = row_origin(source, row)
        return (Unreadable(origin, reason(error, origin)),)


def row_origin(source: PairSource, row: int) -> str:
    """File and row, whatever state the row is in."""
    try:
        return source.origin(row)
    except Exception:  # what cannot be read may not know its name either
        return f"{type(source).__name__} row {row}"


def check_row(row: int, length: int) -> None:
    """Raises `IndexError` for a row that does not exist."""
    if not 0 <= row < length:
        raise IndexError(f"row {row} of {length}")


def pair_origin(source: PairSource, row: int, element: Sequence[TrainingPair | Unreadable], pair: TrainingPair) -> str:
    """File and row of one of a row's pairs."""
    return row_origin(source, row) if len(element) == 1 else pair.query.origin
