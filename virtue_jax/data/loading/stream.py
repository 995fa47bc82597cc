"""One packing stream: every S-th element of the order, read ahead, those that found no room waiting."""

import itertools
import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from virtue_jax.data.loading.elements import Element
from virtue_jax.data.packing.first_fit import Fit, Groups, first_fit
from virtue_jax.data.unreadable import QUARANTINE, too_many_bad


class StreamState(NamedTuple):
    """drawn: elements taken from the order so far; waiting: those of them that are not packed yet; bad: pairs of them
    that could not be used."""

    drawn: int = 0
    waiting: tuple[int, ...] = ()
    bad: int = 0


@dataclass(frozen=True)
class StreamRules:
    """What all streams go by. step_pairs: pairs that one packs in a step at most. ahead: elements that it has read
    ahead of the step being packed. bad_rows: share of pairs that may be bad. pairs: of an element, on average."""

    step_pairs: int
    ahead: int = 0
    bad_rows: float = 0.0
    pairs: float = 1.0


class TooManyBad(ValueError):
    """More pairs cannot be used than is allowed; `entries`: those of the quarantine that no report has told of yet."""

    def __init__(self, message: str, entries: Sequence[dict]):
        super().__init__(message)
        self.entries = tuple(entries)


class ElementPool(Protocol):
    """Reads elements by number, for all streams of a process: a `ReadPool`, or a sample of lengths."""

    def read(self, number: int) -> "Future[Element]": ...


class Stream:
    """Elements index, index + of, index + 2 * of, ... of the order, from a state on.

    `ask`, then `fit`, once a step each; `state` is then exactly what a new Stream goes on from, read-ahead excluded.
    Streams share a pool: what one has asked for is read while another is packed. waiting: elements that found no room,
    oldest first. bad: entries of the quarantine for what the last step met.
    """

    def __init__(self, pool: ElementPool, index: int, of: int, state: StreamState, rules: StreamRules):
        self._pool, self._index, self._rules = pool, index, rules
        self._drawn, self._bad_pairs = state.drawn, state.bad
        self._to_read = len(state.waiting)  # waiting elements of a restored state come again before new ones
        self._numbers = itertools.chain(state.waiting, itertools.count(index + of * state.drawn, of))
        self._asked: deque[Future[Element]] = deque()
        self.waiting: list[Element] = []
        self.bad: list[dict] = []

    def state(self) -> StreamState:
        return StreamState(self._drawn, tuple(element.number for element in self.waiting), self._bad_pairs)

    def ask(self) -> None:
        """Has about as many elements read as the next step draws."""
        room = self._rules.step_pairs - sum(element.pairs for element in self.waiting)
        self._ask(self._to_read + math.ceil(max(room, 0) / self._rules.pairs))

    def fit(self, groups: Groups) -> tuple[list[Element], Fit]:
        """The elements that may go into the next step, oldest first, and where they go in this stream's rows; those
        without a place wait.

        Raises:
            TooManyBad: more than `bad_rows` of the drawn pairs are bad.
        """
        waited, elements = self.draw()
        fit = first_fit([element.needs for element in elements], groups, waited)
        self.placed({e.number for e, places in zip(elements, fit.places, strict=True) if places is not None})
        return elements, fit

    def draw(self) -> tuple[int, list[Element]]:
        """At most `step_pairs` pairs: what waits, oldest first, then newly drawn elements; how many of them waited.

        Raises:
            TooManyBad: as `fit`.
        """
        self.bad, room = [], self._rules.step_pairs
        while self._to_read:
            self._to_read -= 1
            self._take(self._next(), again=True)
        waited = len(self.waiting)
        taken = 0
        while room:
            while taken == len(self.waiting):
                self._drawn += 1
                self._take(self._next())
            room -= self.waiting[taken].pairs
            if room < 0:
                break
            taken += 1
        return min(waited, taken), self.waiting[:taken]

    def placed(self, numbers: set[int]) -> None:
        """These are packed; the others wait."""
        self.waiting = [element for element in self.waiting if element.number not in numbers]

    def _next(self) -> Element:
        self._ask(1)
        element = self._asked.popleft()
        self._ask(self._rules.ahead)
        return element.result()

    def _ask(self, count: int) -> None:
        while len(self._asked) < count:
            self._asked.append(self._pool.read(next(self._numbers)))

    def _take(self, element: Element, again: bool = False) -> None:
        if element.pairs:
            self.waiting.append(element)
        if not element.bad or (again and element.pairs):  # what it lacks was counted when it was drawn
            return
        self.bad += [bad.entry(element.number) for bad in element.bad]
        self._bad_pairs += len(element.bad)
        drawn, bad, allowed = round(self._drawn * self._rules.pairs), self._bad_pairs, self._rules.bad_rows
        if too_many_bad(bad, drawn, allowed):
            last = "; ".join(entry["error"] for entry in self.bad[-3:])
            raise TooManyBad(
                f"{bad} of about {drawn} pairs in the elements that stream {self._index} has drawn cannot be used, "
                f"more than config.data.bad_rows {allowed} allows; {QUARANTINE} in the run's workdir names those "
                f"of earlier steps, and these are the last: {last}. Correct them, leave them out, or allow more",
                self.bad,
            )
