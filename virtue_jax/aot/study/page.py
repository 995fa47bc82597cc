"""`docs/scaling.md`: the studies' questions, answers, tables and plots; everything that depends on figures is made of
them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from virtue_jax.aot.study.answers import answers
from virtue_jax.aot.study.entry import Entry
from virtue_jax.aot.study.page_text import CAPTIONS, HEAD, SHOWN
from virtue_jax.aot.study.plots import plots, save_plots
from virtue_jax.aot.study.point import LOW, Point
from virtue_jax.aot.study.results import Row
from virtue_jax.aot.study.sent import sent_tables
from virtue_jax.aot.study.study_file import Study
from virtue_jax.aot.study.table import csv_text, markdown
from virtue_jax.atomic_files import replace_text

CSV, REPORTS = "points.csv", "reports"


@dataclass(frozen=True)
class Result:
    """A study, its rows of figures, and the entries that they are from."""

    study: Study
    rows: Sequence[Row]
    entries: Mapping[Point, Entry]


def write_page(path: Path, results: Sequence[Result], prices: Mapping[str, float]) -> None:
    """The page, and beside it, in the folder of its name, plots, `points.csv` and the reports that it is made from.

    Raises OSError.
    """
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    parts = [HEAD.format(folder=folder.name, made=_made(results), prices=_prices(prices))]
    for result in results:
        drawn = write_plots(folder, result, f"{result.study.name}-")
        parts.append(_section(result, {name: f"{folder.name}/{png.name}" for name, png in drawn.items()}))
    parts.append(sent_tables({point: entry for result in results for point, entry in result.entries.items()}))
    write_reports(folder, results)
    replace_text(path, "\n\n".join(filter(None, parts)) + "\n")


def write_plots(folder: Path, result: Result, prefix: str = "") -> dict[str, Path]:
    """{name: PNG}; in a folder of the study's name where no prefix is given. Raises OSError."""
    figures = plots(result.study, result.rows, result.entries)
    return save_plots(figures, folder if prefix else folder / result.study.name, prefix)


def write_reports(folder: Path, results: Sequence[Result]) -> None:
    """`points.csv` of all studies, and one report per point that was asked."""
    replace_text(folder / CSV, csv_text([row for result in results for row in result.rows]))
    for result in results:
        for point, entry in result.entries.items():
            entry.write(folder / REPORTS / point.file_name())


def _section(result: Result, drawn: Mapping[str, str]) -> str:
    lines = [f"## {result.study.question}", *[f"* {line}" for line in answers(*_args(result))]]
    parts = ["\n".join([lines[0], "", *lines[1:]]), markdown(result.rows)]
    shown = SHOWN[result.study.kind, result.study.x]
    parts += [f"![{CAPTIONS[name]}]({drawn[name]})" for name in shown if name in drawn]
    others = [f"[{CAPTIONS[name]}]({png})" for name, png in drawn.items() if name not in shown]
    parts += [f"Further plots: {', '.join(others)}."] if others else []
    return "\n\n".join(parts)


def _args(result: Result) -> tuple[Study, Sequence[Row], Mapping[Point, Entry]]:
    return result.study, result.rows, result.entries


def _made(results: Sequence[Result]) -> str:
    """How many points by which versions, how many fit, how long they took."""
    entries = {point.identity(): entry for each in results for point, entry in each.entries.items()}
    asked = {point.identity() for each in results for point in each.study.points}
    reports = [entry.report for entry in entries.values() if entry.report is not None]
    made_by = [f"jax {each['versions'].get('jax')}, libtpu {each['versions'].get('libtpu')}" for each in reports]
    fitting = sum(bool(report["fits"]) for report in reports)
    minutes = sum(entry.seconds for entry in entries.values()) / 60
    by = f"{'; '.join(sorted(set(made_by))) or 'none done'}; {minutes:.0f} minutes of wall time in all"
    low = len({point.identity() for each in results for point in each.study.points if point.effort == LOW})
    told = f"{len(asked)} compilations ({f'{low} of low effort; ' if low else ''}{by})"
    lacking = len(asked) - len(reports)
    return f"{told}: {fitting} fit their chips, {len(reports) - fitting} do not" + (
        f", and **{lacking} have no report**" if lacking else ""
    )


def _prices(prices: Mapping[str, float]) -> str:
    if not prices:
        return "No prices were given (`--price v5e=...`), so nothing is said of cost."
    told = ", ".join(f"{chip} {price:g}" for chip, price in sorted(prices.items()))
    return f"Prices as given on the command line, USD per chip-hour: {told}."


def complete(results: Sequence[Result]) -> bool:
    """Whether every point has a report, fitting or not."""
    return all(
        (entry := result.entries.get(point)) is not None and entry.report is not None
        for result in results
        for point in result.study.points
    )
