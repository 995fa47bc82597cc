"""A study's figures as plots: memory, network, and bands between a prediction's bounds: MFU, pace, efficiency, cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtue_jax.aot.study.entry import Entry
from virtue_jax.aot.study.plot_bars import band_bars, memory_parts, share_bars, stacked_bars
from virtue_jax.aot.study.plot_lines import Line, band_lines, share_lines
from virtue_jax.aot.study.point import Point
from virtue_jax.aot.study.results import BOUNDS, DOES_NOT_FIT, FITS, GIB, Row, known_terms
from virtue_jax.aot.study.study_file import Study, series_of
from virtue_jax.aot.study.table import short

DPI = 130


@dataclass(frozen=True)
class Drawn:
    """What every plot of a study needs: its points, rows and entries, in one order."""

    study: Study
    rows: Sequence[Row]
    entries: Mapping[Point, Entry]

    def pairs(self) -> list[tuple[Point, Row]]:
        return list(zip(self.study.points, self.rows, strict=True))

    def reports(self) -> list[dict | None]:
        return [entry.report if (entry := self.entries.get(point)) else None for point in self.study.points]

    def lines(self, keys: Sequence[str]) -> list[Line]:
        """Of each series the values of `keys` over the study's x; points without the first of them are left out."""
        found: dict[tuple, list] = {}
        labels: dict[tuple, str] = {}
        for point, row in self.pairs():
            # Over the batch, pods are lines of their own; over chips, a line goes through pods.
            series = (*series_of(point), *([] if self.study.x == "chips" else [point.pod]))
            labels.setdefault(series, self._label(point))
            values = tuple(row[key] for key in keys)
            if values[0] is not None:
                found.setdefault(series, []).append((row[self.study.x], values, row["status"]))
        ordered = [series for series in labels if series in found]
        return [Line(labels[s], [*sorted(found[s])], list(labels).index(s)) for s in ordered]

    def _label(self, point: Point) -> str:
        where = point.chip if self.study.x == "chips" else point.pod
        named = [point.model.split(":")[0], where]
        if len({other.split for other in self.study.points}) > 1:
            named.append(point.split)
        if len({other.overrides for other in self.study.points}) > 1:
            named += [f"{path.split('.')[-1]}={value}" for path, value in point.overrides]
        if len({other.effort for other in self.study.points}) > 1:
            named.append(f"{point.effort} effort")
        return " ".join(named)


def plots(study: Study, rows: Sequence[Row], entries: Mapping[Point, Entry]) -> dict[str, Any]:
    """{name: matplotlib figure} of everything that the rows have figures for."""
    drawn = Drawn(study, rows, entries)
    made = {name: draw(drawn) for name, draw in _PLOTS.items()}
    return {name: figure for name, figure in made.items() if figure is not None}


def save_plots(figures: Mapping[str, Any], folder: Path, prefix: str = "") -> dict[str, Path]:
    """{name: PNG in `folder`}; prefix: of the files' names. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{prefix}{name}.png" for name in figures}
    for name, path in paths.items():
        figures[name].savefig(path, dpi=DPI, metadata={"Software": None})
    return paths


def _banded(figure: str, title: str, unit: str, **more) -> Callable[[Drawn], Any]:
    """A figure that has two bounds, of points that fit."""
    keys = [f"{figure}_{bound}" for bound in BOUNDS]

    def draw(drawn: Drawn):
        if not any(row[keys[0]] is not None for row in drawn.rows):
            return None
        heads = (title, drawn.study.question)
        if drawn.study.x:
            return band_lines(drawn.lines(keys), heads, x=drawn.study.x, y=unit, **more)
        marks = [row[f"{figure}_calibrated"] for row in drawn.rows]
        bands = [tuple(sorted(value for key in keys if (value := row[key]) is not None)) for row in drawn.rows]
        return band_bars(_bars(drawn), bands, marks, heads, unit)

    return draw


def _memory(drawn: Drawn):
    heads = ("How much of a chip's memory does it take?", drawn.study.question)
    if not any(row["hbm_size_gib"] is not None for row in drawn.rows):
        return None
    if drawn.study.x:
        lines = drawn.lines(["hbm_peak_gib", "hbm_size_gib"])
        return share_lines(lines, heads, x=drawn.study.x, y="peak of a chip's HBM (%)")
    memories = [report and report["memory"] for report in drawn.reports()]
    strokes = [_of_all(memory["peak"], memory["size"]) if memory else None for memory in memories]
    stacks = [memory_parts(memory) if memory else None for memory in memories]
    return stacked_bars(_bars(drawn), stacks, strokes, heads, "GiB a chip (stroke: all that the chip has)")


def _of_all(peak: float | None, size: float) -> tuple[float, str]:
    return size / GIB, f"{'more than all' if peak is None else f'{peak / GIB:.1f}'} of {size / GIB:.1f}"


def _time(drawn: Drawn):
    """Of points that fit."""
    reports = [report if report and report["fits"] else None for report in drawn.reports()]
    if not any(reports):
        return None
    strokes = [report and _stroke(report["prediction"]) for report in reports]
    stacks = [report and {name: each for name, each in known_terms(report).items() if each} for report in reports]
    heads = ("Where does a step's time go?", drawn.study.question)
    known = any(stroke and stroke[0] is not None for stroke in strokes)
    said = "stroke: the compiler's cycles" if known else "low effort: no cycles"
    unit = f"seconds of a step: the roofline's terms ({said})"
    return stacked_bars(_bars(drawn), stacks, strokes, heads, unit)


def _stroke(prediction: dict) -> tuple[float | None, str]:
    """At the cycles; at low effort there is nothing to mark."""
    if prediction["cycles"] is None:
        return None, f"{short(prediction['roofline']['seconds'])} (low effort)"
    seconds = prediction["cycles"]["seconds"]
    return seconds, short(seconds)


def _network(drawn: Drawn):
    heads = ("How much of a step is waiting for the network?", drawn.study.question)
    if not any(row["communication_share"] is not None for row in drawn.rows):
        return None
    if drawn.study.x:
        lines = drawn.lines(["communication_share"])
        return share_lines(lines, heads, x=drawn.study.x, y="share of the roofline's seconds (%)", limit=False)
    return share_bars(_bars(drawn), [row["communication_share"] for row in drawn.rows], heads)


def _efficiency(drawn: Drawn):
    titles = {
        "weak": "Do N times the chips do N times the work?",
        "strong": "Is the same batch done N times sooner on N times the chips?",
    }
    if drawn.study.kind not in titles:
        return None
    unit = "pairs/s a chip (smallest pod = 1)"
    return _banded("efficiency", titles[drawn.study.kind], unit, ideal=1.0)(drawn)


def _bars(drawn: Drawn) -> list[tuple[str, str, str]]:
    """(label, group, what to say in place of a bar) of each point."""
    said = {FITS: "", DOES_NOT_FIT: "does not fit"}
    return [
        (row["point"], f"{point.model} {point.pod}", said.get(row["status"], row["status"]))
        for point, row in drawn.pairs()
    ]


_PLOTS: dict[str, Callable[[Drawn], Any]] = {
    "mfu": _banded("mfu", "How much of the chips' peak does useful work?", "predicted MFU"),
    "time": _time,
    "memory": _memory,
    "network": _network,
    "pace": _banded("pairs_per_second", "How many pairs a second?", "predicted pairs/s", log=True),
    "efficiency": _efficiency,
    "cost": _banded("usd", "What do a million pairs cost?", "USD per million pairs"),
}
