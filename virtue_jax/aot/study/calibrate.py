"""`virtue scale --calibrate`: measured runs and their reports in, a calibration file and a table of its errors out."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from virtue_jax.aot.study.fit import calibration
from virtue_jax.aot.study.measured import read_measured
from virtue_jax.aot.study.table import NOTHING
from virtue_jax.atomic_files import replace_text

_HEADS = {"uncalibrated": "as predicted", "in_sample": "calibrated", "left_out": "by the other runs"}


def calibrate(given: Sequence[tuple[str, str]], out: Path, console: Console) -> None:
    """given: (work directory of a run, its report).

    Raises:
        ValueError: as `read_measured`, or one run twice.
    """
    folders = [Path(folder).resolve() for folder, _ in given]
    twice = [folder for folder in folders if folders.count(folder) > 1]
    if twice:
        raise ValueError(f"--calibrate: {twice[0]} is given twice; a run is one measurement")
    found = calibration([read_measured(Path(folder), Path(report)) for folder, report in given])
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_text(out, json.dumps(found, indent=1) + "\n")
    console.print(_table(found))
    factors = ", ".join(f"{name} {value:.3f}" for name, value in found["factors"].items())
    console.print(f"factors ({found['freed']} free): {factors}", highlight=False)
    for line in _warnings(found):
        console.print(line, style="yellow", highlight=False)
    console.print(f"calibration: {out}", highlight=False)


def _table(found: dict) -> Table:
    table = Table("run", "chip", title="error of a step's predicted seconds", title_justify="left")
    for head in ("measured s", "records", *_HEADS.values()):
        table.add_column(head, justify="right")
    for run in found["runs"]:
        left = sum(run["records_left_out"].values())
        records = f"{run['records']} of {run['records'] + left}"
        errors = [_percent(run[key]) for key in _HEADS]
        table.add_row(run["run"], run["chip"], f"{run['measured']:.4g}", records, *errors)
    table.add_row("root mean square", "", "", "", *(_percent(found["errors"][key], "") for key in _HEADS), style="bold")
    return table


def _warnings(found: dict) -> list[str]:
    """What the figures do not tell."""
    told = []
    if len(found["runs"]) == 1:
        told.append("one run: after fitting its error is 0 by construction; how well others are predicted is unknown")
    elif found["freed"] == len(found["runs"]):
        told.append("as many factors as runs: the calibrated error is no test; look at the error by the other runs")
    if found["freed"] < min(3, len(found["runs"])):
        told.append("the runs are too alike to tell more factors apart; add one with another mesh, batch or resolution")
    if len(found["chips"]) > 1:
        told.append(f"one set of factors for {', '.join(found['chips'])}; a calibration per chip may predict better")
    return told


def _percent(value: float | None, sign: str = "+") -> str:
    return NOTHING if value is None else f"{100 * value:{sign}.1f} %"
