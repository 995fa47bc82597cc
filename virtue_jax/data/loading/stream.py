"""One packing stream: every S-th element of the order, read ahead, those that found no room waiting."""

import itertools
import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from virtue_jax.data.loading.elements import BadElement, Element, Reading
from virtue_jax.data.loading.read_pool import ReadPool
from virtue_jax.data.unreadable import too_many_bad


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
    ahead: int
    bad_rows: float
    pairs: float = 1.0


class TooManyBad(ValueError):
    """More pairs cannot be used than is allowed; `elements`: those that no report has told of yet."""

    def __init__(self, message: str, elements: Sequence[BadElement]):
        super().__init__(message)
        self.elements = tuple(elements)


@dataclass
class Candidates:
    """What a stream would pack next: good elements, oldest first, of which the first `waited` found no room before; and
    the bad ones, whole or in part, met on the way."""

    good: list[Element]
    waited: int = 0
    bad: list[BadElement] = field(default_factory=list)


class Stream:
    """Elements index, index + of, index + 2 * of, ... of the order, from a state on.

    `ask`, `candidates`, `placed`, once a step each; `state` is then exactly what a new Stream goes on from, read-ahead
    excluded. Streams share a pool: what one has asked for is read while another is packed.
    """

    def __init__(self, pool: ReadPool, index: int, of: int, state: StreamState, rules: StreamRules):
        self._pool, self._index, self._rules = pool, index, rules
        self._drawn, self._bad = state.drawn, state.bad
        self._to_read = len(state.waiting)  # waiting elements of a restored state come again before new ones
        self._waiting: list[Element] = []
        self._numbers = itertools.chain(state.waiting, itertools.count(index + of * state.drawn, of))
        self._asked: deque[Future[Reading]] = deque()

    def state(self) -> StreamState:
        return StreamState(self._drawn, tuple(element.number for element in self._waiting), self._bad)

    def ask(self) -> None:
        """Has about as many elements read as the next step draws."""
        room = self._rules.step_pairs - sum(element.pairs for element in self._waiting)
        self._ask(self._to_read + math.ceil(max(room, 0) / self._rules.pairs))

    def candidates(self) -> Candidates:
        """At most `step_pairs` pairs: what waits, oldest first, then newly drawn elements.

        Raises:
            TooManyBad: more than `bad_rows` of the drawn pairs are bad.
        """
        made, room = Candidates([]), self._rules.step_pairs
        while self._to_read:
            self._to_read -= 1
            self._take(self._next(), made, again=True)
        waited = len(self._waiting)
        taken = 0
        while True:
            while taken == len(self._waiting):
                self._drawn += 1
                self._take(self._next(), made)
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

    def _next(self) -> Reading:
        self._ask(1)
        element = self._asked.popleft()
        self._ask(self._rules.ahead)
        return element.result()

    def _ask(self, count: int) -> None:
        while len(self._asked) < count:
            self._asked.append(self._pool.read(next(self._numbers)))

    def _take(self, read: Reading, made: Candidates, again: bool = False) -> None:
        if read.element is not None:
            self._waiting.append(read.element)
        if not read.bad or (again and read.element is not None):  # what it lacks was counted when it was drawn
            return
        made.bad += read.bad
        self._bad += len(read.bad)
        drawn, bad, allowed = round(self._drawn * self._rules.pairs), self._bad, self._rules.bad_rows
        if too_many_bad(bad, drawn, allowed):
            raise TooManyBad(
                f"{bad} of about {drawn} pairs in the elements that stream {self._index} has drawn cannot be used, "
                f"more than config.data.bad_rows {allowed} allows; quarantine.jsonl in the run's workdir names those "
                f"of earlier steps, and these are the last: {_told(made.bad)}. Correct them, leave them out, or allow "
                "more",
                made.bad,
            )


def _told(bad: Sequence[BadElement]) -> str:
    return "; ".join(element.error for element in bad[-3:])
