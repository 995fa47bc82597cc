"""Elements of the data that could not be read or encoded: named in a file, each once."""

import json
from pathlib import Path

from virtue_jax.disk import told_of_the_disk

FILE = "quarantine.jsonl"


class Quarantine:
    """`workdir/quarantine.jsonl`, one line {"element", "origin", "error"} each; written by the leader,
    and by a process that ends alone.

    A resumed run meets the same elements again, and does not write them again.
    """

    def __init__(self, workdir: Path):
        self.path = workdir / FILE
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
