"""What is kept of a point: the compile command's report, or why there is none."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from virtue_jax.aot.study.point import FULL, LOW, Point
from virtue_jax.atomic_files import replace_text

FORMAT = 1
_REPORT = ("format", "chip", "chips", "mesh", "fits", "memory", "prediction", "terms", "versions")


@dataclass(frozen=True)
class Entry:
    """report: as `virtue compile --json` writes it, None where the point failed with `error`. key: its content key.
    seconds, peak_gib: wall time and peak memory of the command."""

    inputs: dict
    key: str
    report: dict | None
    error: str = ""
    seconds: float = 0.0
    peak_gib: float = 0.0

    def write(self, path: Path) -> None:
        """Writes the entry, whole or not at all. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps({"format": FORMAT} | vars(self), indent=1) + "\n")


def read_entry(path: Path) -> Entry | None:
    """None where there is no file, or none that is whole: it is made anew then."""
    try:
        values = json.loads(path.read_text())
        if values.pop("format") != FORMAT or (values["report"] is not None and misreport(values["report"])):
            return None
        return Entry(**values)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def misreport(report: object) -> str:
    """What keeps a value from being a whole report of the compile command; "" where nothing does."""
    if not isinstance(report, dict):
        return "it is no JSON object"
    missing = [key for key in _REPORT if key not in report]
    if missing:
        return f"it has no {', '.join(missing)}"
    if report["format"] != 1:
        return f"its format is {report['format']!r}, not 1"
    prediction = report["prediction"] or {}
    if report["fits"] and not (report["terms"] and prediction.get("roofline")):
        return "it fits and has no prediction by the roofline"
    if report["fits"] and not prediction.get("cycles") and effort_of(report) != LOW:
        return "it fits, is of full effort, and has no prediction by the compiler's cycles"
    return ""


def effort_of(report: dict) -> str:
    """The compiler's: of low effort there are no cycles."""
    return (report.get("inputs") or {}).get("effort", FULL)


def kept(folder: Path, points: Iterable[Point]) -> dict[Point, Entry]:
    """Those of the points that have an entry in a folder of them, found by what was asked, whatever the files' names.

    Raises:
        ValueError: there is no such folder, or nothing in it.
    """
    entries = [entry for path in sorted(folder.glob("*.json")) if (entry := read_entry(path)) is not None]
    if not entries:
        raise ValueError(f"--from {folder}: no whole report of a point in it")
    by_inputs = {json.dumps(entry.inputs, sort_keys=True): entry for entry in entries}
    asked = {point: by_inputs.get(json.dumps(point.inputs(), sort_keys=True)) for point in points}
    return {point: entry for point, entry in asked.items() if entry is not None}
