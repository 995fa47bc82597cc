"""One packing stream: every S-th element of the order, read ahead by Grain, those that found no room waiting."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import grain

from virtue_jax.data.packing.elements import BadElement, Element, ElementReader

ENDLESS = 1 << 40  # elements; more than any run will see, and safely within what Grain can index
LEAST_DRAWN, LEAST_BAD = 1000, 10  # a share of bad elements says something from here on


class StreamState(NamedTuple):
    """drawn: elements taken from the order so far; waiting: those of them that are not packed yet; bad: those of them
    that could not be used."""

    drawn: int = 0
    waiting: tuple[int, ...] = ()
    bad: int = 0


@dataclass(frozen=True)
class ReadAhead:
    """How each stream reads: by threads of this process, or `workers` processes if not 0; so many elements ahead."""

    threads: int = 2
    workers: int = 0
    elements: int = 16


@dataclass
class Candidates:
    """What a stream would pack next: good elements, oldest first, of which the first `waited` found no room before; and
    the bad ones met on the way."""

    good: list[Element]
    waited: int = 0
    bad: list[BadElement] = field(default_factory=list)


class Stream:
    """Elements index, index + of, index + 2 * of, ... of the order, from a state on.

    `candidates` then `placed`, once a step each; `state` is then exactly what a new Stream goes on from, read-ahead
    excluded. `close` ends worker processes.
    """

    def __init__(
        self, reader: ElementReader, index: int, of: int, state: StreamState, ahead: ReadAhead, bad_rows: float
    ):
        self._reader, self._index, self._of, self._bad_rows = reader, index, of, bad_rows
        self._drawn, self._bad = state.drawn, state.bad
        self._to_read = len(state.waiting)  # waiting elements of a restored state come again before new ones
        self._waiting: list[Element] = []
        numbers = _Numbers(state.waiting, index + of * state.drawn, of)
        self._elements = _read(reader, numbers, ahead)

    def state(self) -> StreamState:
        return StreamState(self._drawn, tuple(element.number for element in self._waiting), self._bad)

    def candidates(self) -> Candidates:
        """At most the reader's `step_pairs` pairs: what waits, oldest first, then newly drawn elements.

        Raises:
            ValueError: more than `bad_rows` of the drawn elements are bad.
        """
        made, room = Candidates([]), self._reader.step_pairs
        while self._to_read:
            self._to_read -= 1
            self._take(next(self._elements), made)
        waited = len(self._waiting)
        taken = 0
        while True:
            while taken == len(self._waiting):
                self._drawn += 1
                self._take(next(self._elements), made)
            room -= self._waiting[taken].pairs
            if room < 0:
                break
            taken += 1
            if not room:
                break
        made.good, made.waited = self._waiting[:taken], min(waited, taken)
        return made

    def placed(self, numbers: set[int]) -> None:
        """These are packed; the others wait."""
        self._waiting = [element for element in self._waiting if element.number not in numbers]

    def close(self) -> None:
        self._elements.close()

    def _take(self, element: Element | BadElement, made: Candidates) -> None:
        if isinstance(element, Element):
            self._waiting.append(element)
            return
        made.bad.append(element)
        self._bad += 1
        drawn, bad = self._drawn, self._bad
        if too_many_bad(bad, drawn, self._bad_rows):
            raise ValueError(
                f"{bad} of the {drawn} elements that stream {self._index} has drawn cannot be used, more than "
                f"config.data.bad_rows {self._bad_rows} allows; quarantine.jsonl in the run's workdir names those of "
                f"earlier steps, and these are the last: {_told(made.bad)}. Correct them, leave them out, or allow more"
            )


def too_many_bad(bad: int, drawn: int, allowed: float) -> bool:
    """Whether more than the share `allowed` of the elements is bad, once there are enough of them to say."""
    return bad > allowed * drawn and (drawn >= LEAST_DRAWN or bad >= LEAST_BAD)


def _told(bad: Sequence[BadElement]) -> str:
    return "; ".join(element.error for element in bad[-3:])


def _read(reader: ElementReader, numbers: "_Numbers", ahead: ReadAhead) -> Iterator[Element | BadElement]:
    options = grain.ReadOptions(num_threads=ahead.threads, prefetch_buffer_size=ahead.elements)
    dataset = grain.MapDataset.source(numbers).map(reader.__getitem__).to_iter_dataset(options)
    if ahead.workers:
        _let_grain_read_flags()
        per_worker = max(1, ahead.elements // ahead.workers)
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(ahead.workers, per_worker_buffer_size=per_worker))
    return iter(dataset)


@dataclass(frozen=True)
class _Numbers:
    """Element numbers as a Grain source: those given, then first, first + step, ..."""

    given: tuple[int, ...]
    first: int
    step: int

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> int:
        given = len(self.given)
        return self.given[index] if index < given else self.first + (index - given) * self.step


def _let_grain_read_flags() -> None:
    """Grain's workers read absl flags, which a program that does not start through absl has never parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
