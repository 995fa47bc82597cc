"""Rows of figures as a table: on the terminal, in Markdown, and as CSV with all figures in full."""

import csv
import io
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from virtue_jax.aot.study.results import COLUMNS, FAILED, MISSING, Row, band

NOTHING = "-"


def csv_text(rows: Sequence[Row]) -> str:
    """One line per row; empty = no such figure."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def csv_rows(text: str) -> list[Row]:
    """What `csv_text` was given, texts and numbers alike."""
    return [{key: _value(value) for key, value in line.items()} for line in csv.DictReader(io.StringIO(text))]


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """(headers, lines) of the columns that any row has something in; of `_IF_DIFFERENT`, if rows differ in it."""
    lines = {header: [cell(row) for row in rows] for header, cell in _CELLS.items()}
    shown = [header for header, column in lines.items() if set(column) != {NOTHING}]
    shown = [header for header in shown if header not in _IF_DIFFERENT or len(set(lines[header]) - {NOTHING}) > 1]
    return shown, [list(line) for line in zip(*(lines[header] for header in shown), strict=True)]


def print_table(console: Console, title: str, rows: Sequence[Row]) -> None:
    """As wide as its figures need: a narrow terminal wraps its lines, a file has them whole."""
    table = rich_table(title, rows)
    width = max(console.width, Measurement.get(console, console.options.update(max_width=1000), table).maximum)
    Console(file=console.file, width=width).print(table, crop=False)


def rich_table(title: str, rows: Sequence[Row]) -> Table:
    headers, lines = cells(rows)
    table = Table(title=title, title_justify="left")
    for header in headers:
        table.add_column(
            header.replace(" ", "\n"), justify="left" if header in _LEFT else "right", no_wrap=header != "point"
        )
    for row, line in zip(rows, lines, strict=True):
        table.add_row(*line, style="red" if row["status"] in (FAILED, MISSING) else None)
    return table


def markdown(rows: Sequence[Row]) -> str:
    headers, lines = cells(rows)
    rule = ["---" if header in _LEFT else "---:" for header in headers]
    return "\n".join("| " + " | ".join(line) + " |" for line in [headers, rule, *lines])


def failures(rows: Sequence[Row]) -> list[str]:
    """A line for every point without a report."""
    told = {FAILED: lambda row: row["error"], MISSING: lambda row: "no report of it"}
    return [f"{row['point']}: {row['status']}: {told[row['status']](row)}" for row in rows if row["status"] in told]


def short(value: float | None) -> str:
    """Three digits: 0.412, 7.20, 388, 12,300."""
    if value is None:
        return NOTHING
    if abs(value) >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:#.3g}".rstrip(".")


def spread(values: tuple[float, float] | None) -> str:
    """ "0.41 .. 0.52"; one figure where both are alike."""
    if values is None:
        return NOTHING
    low, high = map(short, values)
    return low if low == high else f"{low}..{high}"


def _band(figure: str) -> Callable[[Row], str]:
    return lambda row: spread(band(row, figure))


def _memory(row: Row) -> str:
    """The compiler does not always say how much it is that does not fit."""
    if row["hbm_size_gib"] is None:
        return NOTHING
    peak = f">{row['hbm_size_gib']:.1f}" if row["hbm_peak_gib"] is None else f"{row['hbm_peak_gib']:.1f}"
    return f"{peak}/{row['hbm_size_gib']:.1f}"


def _percent(key: str) -> Callable[[Row], str]:
    return lambda row: NOTHING if row[key] is None else f"{100 * row[key]:.1f} %"


def _text(key: str) -> Callable[[Row], str]:
    return lambda row: NOTHING if row[key] in (None, "") else str(row[key])


def _number(key: str) -> Callable[[Row], str]:
    return lambda row: short(row[key])


def _mesh(row: Row) -> str:
    """Sizes alone: "64x4x1"."""
    return "x".join(each.split("=")[1] for each in row["mesh"].split()) or NOTHING


_IF_DIFFERENT = ("remat",)
_LEFT = ("point", "status", "effort")
_CELLS: dict[str, Callable[[Row], str]] = {
    "point": _text("point"),
    "chips": _text("chips"),
    "mesh": _mesh,
    "batch": _text("batch"),
    "remat": _text("remat"),
    "effort": _text("effort"),
    "status": _text("status"),
    "HBM GiB": _memory,
    "step s": _band("seconds"),
    "MFU": _band("mfu"),
    "pairs/s": _band("pairs_per_second"),
    "network": _percent("communication_share"),
    "efficiency": _band("efficiency"),
    "USD/M pairs": _band("usd"),
    "calibrated s": _number("seconds_calibrated"),
    "calibrated MFU": _number("mfu_calibrated"),
}


def _value(text: str):
    if text == "":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
