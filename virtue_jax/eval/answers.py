"""What a process found in its share of the questions, told to all processes of a run."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from virtue_jax.config import from_dict, to_dict
from virtue_jax.data.unreadable import Unreadable
from virtue_jax.eval.result import Scored
from virtue_jax.parallel.processes import gather_bytes, process_count, process_number


class AnotherStopped(BaseException):
    """Another process was told to stop. No `Exception`, as the signal that it tells of."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be asked: its number, its file and row for people, what is wrong and what to do."""

    row: int
    origin: str
    error: str

    def entry(self) -> dict:
        """Its line of the quarantine."""
        return Unreadable(self.origin, self.error).entry(self.row)


@dataclass(frozen=True)
class Answers:
    """Of some questions. scored: by way of asking. bad: those that cannot be asked."""

    scored: dict[str, tuple[Scored, ...]] = field(default_factory=dict)
    bad: tuple[BadRow, ...] = ()


def share_of(rows: Sequence[int]) -> list[int]:
    """This process's rows, consecutive ones: neighbours have images and candidates in common."""
    first, last = (len(rows) * (process_number() + i) // process_count() for i in (0, 1))
    return list(rows[first:last])


def together(ask: Callable[[], Answers]) -> Answers:
    """What all processes found; where one of them fails or is told to stop, all of them raise. All call it.

    Raises:
        AnotherStopped, RuntimeError: another process raised, something that is no `Exception` or one.
        BaseException: what `ask` raised.
    """
    failure: BaseException | None = None
    try:
        mine = {"answers": to_dict(ask())}
    except BaseException as error:  # a signal as well: the others must not wait for this process
        failure, mine = error, {"failure": f"{type(error).__name__}: {error}", "stop": not isinstance(error, Exception)}
    parts = [json.loads(part) for part in gather_bytes(json.dumps(mine).encode())]
    if failure is not None:
        raise failure
    for part in parts:
        if "failure" in part:
            raise (AnotherStopped if part["stop"] else RuntimeError)(f"another process: {part['failure']}")
    return _joined([from_dict(Answers, part["answers"], "answers of a process") for part in parts])


def _joined(parts: Sequence[Answers]) -> Answers:
    modes = dict.fromkeys(mode for part in parts for mode in part.scored)
    scored = {mode: tuple(answer for part in parts for answer in part.scored.get(mode, ())) for mode in modes}
    return Answers(scored, tuple(entry for part in parts for entry in part.bad))
