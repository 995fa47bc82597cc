"""How long a run's steps took, from its `metrics.jsonl`, and whether a report is of that run."""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from virtue_jax.aot.study.entry import effort_of, misreport
from virtue_jax.aot.study.point import FULL

METRICS, CONFIG = "metrics.jsonl", "config.json"
STEP, WAIT = "seconds_per_step", "data_wait_seconds"
WAITING = 0.1  # of a step spent waiting for data, from which the step says nothing about the devices
FEWEST = 3  # records below which a median is no figure


@dataclass(frozen=True)
class Measured:
    """One run beside its report. seconds: the median step. used, left: records that it is of, and those left out."""

    name: str
    chip: str
    terms: dict[str, float]
    predicted: float
    seconds: float
    used: int
    left: dict[str, int]


def read_measured(folder: Path, report_file: Path) -> Measured:
    """Raises:
    ValueError: no whole report, one of another configuration, or no steps to measure.
    OSError: a file cannot be read.
    """
    report = _report(report_file)
    wrong = _mismatch(folder, report)
    if wrong:
        raise ValueError(f"{folder} is not the run that {report_file} predicts: {'; '.join(wrong)}")
    seconds, left = _steps(folder / METRICS)
    roofline = report["prediction"]["roofline"]["seconds"]
    return Measured(
        str(folder), report["chip"], report["terms"], roofline, statistics.median(seconds), len(seconds), left
    )


def _report(path: Path) -> dict:
    """Of `virtue compile --json`, or an entry that a study keeps."""
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected what `virtue compile --json` writes: {error}") from error
    if isinstance(values, dict) and isinstance(values.get("report"), dict):
        values = values["report"]
    wrong = misreport(values)
    if wrong:
        raise ValueError(f"{path}: expected what `virtue compile --json` writes, but {wrong}")
    if not values["fits"]:
        raise ValueError(f"{path}: it says that the step does not fit: nothing can have been measured of it")
    if effort_of(values) != FULL:
        raise ValueError(f"{path}: expected a report of full effort, as runs are compiled, got {effort_of(values)}")
    return values


def _steps(path: Path) -> tuple[list[float], dict[str, int]]:
    """(seconds of the records that count, {why others do not: how many}).

    A record's seconds are the mean since the one before. The first of a run has the compilation and the first batch.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the work directory of `virtue train`")
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:  # the half line of a killed process
            continue
    records = [each for each in records if isinstance(each, dict) and STEP in each]
    left = {"first": min(1, len(records)), "without a time": 0, "waiting for data": 0}
    seconds = []
    for record in records[1:]:
        took, waited = record[STEP], record.get(WAIT) or 0.0
        if not isinstance(took, int | float) or not math.isfinite(took) or took <= 0:
            left["without a time"] += 1
        elif waited > WAITING * took:
            left["waiting for data"] += 1
        else:
            seconds.append(float(took))
    if len(seconds) < FEWEST:
        told = ", ".join(f"{count} {why}" for why, count in left.items() if count)
        raise ValueError(
            f"{path}: {len(seconds)} of {len(records)} records tell how long the devices took for a step"
            f"{f' (left out: {told})' if told else ''}; expected at least {FEWEST}: train longer, log more often"
            + (", or with data that comes in time" if left["waiting for data"] else "")
        )
    return seconds, {why: count for why, count in left.items() if count}


def _mismatch(folder: Path, report: dict) -> list[str]:
    """What the run's configuration has otherwise than the report; nothing where the run has not kept its own."""
    path = folder / CONFIG
    if not path.is_file():
        return []
    config = json.loads(path.read_text())
    wrong = []

    def compare(name: str, ran, predicted) -> None:
        if not {ran, predicted} & {None, "auto", -1, 0} and ran != predicted:  # those are left open
            wrong.append(f"{name}: {ran!r} in the run, {predicted!r} in the report")

    compare("batch_size", config.get("batch_size"), report.get("batch"))
    for key, value in (report.get("numerics") or {}).items():
        compare(f"numerics.{key}", (config.get("numerics") or {}).get(key), value)
    for axis, size in report["mesh"].items():
        compare(f"mesh.{axis}", (config.get("mesh") or {}).get(axis), size)
    groups = (config.get("data") or {}).get("rows") or {}
    for name, predicted in (report.get("rows") or {}).items() if groups else ():
        if name not in groups:
            wrong.append(f"row group {name!r}: only in the report")
            continue
        ran = {"rows": groups[name].get("rows")} | (groups[name].get("shape") or {})
        for key in ("rows", "slots", "patches", "vision_rows"):
            compare(f"rows.{name}.{key}", ran.get(key), predicted.get(key))
    return wrong
