"""Data that cannot be read, encoded or packed: its name, how much of it is too much, the file that lists it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from virtue_jax.data.example import InvalidExample
from virtue_jax.disk import told_of_the_disk

QUARANTINE = "quarantine.jsonl"
LEAST_READ, LEAST_BAD = 1000, 10  # a share of bad pairs says something from here on

Value = TypeVar("Value")


class Unreadable(NamedTuple):
    """One thing that cannot be used: `origin` names its file and row, `error` says why and what to do."""

    origin: str
    error: str

    def entry(self, element: int) -> dict:
        """Its line of the quarantine; element: number of the element of data that it is in."""
        return {"element": element, "origin": self.origin, "error": self.error}


def readable(origin: str, read: Callable[..., Value], *arguments) -> Value | Unreadable:
    """`read(*arguments)`, or an `Unreadable` for whatever it raises: one row's data never end a run."""
    try:
        return read(*arguments)
    except Exception as error:
        return Unreadable(_printable(origin), reason(error, origin))


def reason(error: Exception, origin: str) -> str:
    """One line for an exception that the data of `origin` provoked; what no reader foresaw is named by its type."""
    text = " ".join(str(error).split())
    if isinstance(error, InvalidExample):
        text = text if origin in text else f"{origin}: {text}"
    else:
        text = f"{origin}: {type(error).__name__}: {text}; correct this row or leave it out"
    return _printable(text)


def _printable(text: str) -> str:
    """Half characters, which no terminal and no file takes, as escapes."""
    return text.encode(errors="backslashreplace").decode()


def too_many_bad(bad: int, read: int, allowed: float) -> bool:
    """Whether more than the share `allowed` of what was read is bad, once there is enough of it to say."""
    return bad > allowed * read and (read >= LEAST_READ or bad >= LEAST_BAD)


class Quarantine:
    """`workdir/quarantine.jsonl`, one line {"element", "origin", "error"} each; written by the leader,
    and by a process that ends alone.

    A resumed run meets the same elements again, and does not write them again. fresh: an earlier list is removed.
    """

    def __init__(self, workdir: Path, name: str = QUARANTINE, *, fresh: bool = False):
        self.path = workdir / name
        if fresh:
            self.path.unlink(missing_ok=True)
        self._known = {_identity(entry) for entry in read_whole_lines(self.path)}
        _end_with_whole_line(self.path)

    def add(self, entries: list[dict]) -> list[dict]:
        """Those of `entries` that are new, now written."""
        new = [entry for entry in entries if _identity(entry) not in self._known]
        fresh = {_identity(entry): entry for entry in new}
        if fresh:
            with told_of_the_disk("the quarantine of unreadable data", self.path.parent), self.path.open("a") as file:
                file.write("".join(json.dumps(entry) + "\n" for entry in fresh.values()))
            self._known |= set(fresh)
        return list(fresh.values())


def _identity(entry: dict) -> tuple[int, str]:
    """An element may hold several pairs on one image, each with an origin of its own."""
    return entry["element"], entry["origin"]


def read_whole_lines(path: Path) -> list[dict]:
    """The records of a JSONL file, without the half line that a killed process left."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _end_with_whole_line(path: Path) -> None:
    if path.exists() and (text := path.read_text()) and not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1])
