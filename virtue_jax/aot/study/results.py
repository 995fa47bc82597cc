"""Points and their reports as rows of figures: what the table, the CSV, the plots and the page all show."""

from collections.abc import Mapping
from typing import Any

from virtue_jax.aot.calibration import TERMS, Factors, calibrated
from virtue_jax.aot.study.entry import Entry, effort_of
from virtue_jax.aot.study.point import FULL, Point
from virtue_jax.aot.study.study_file import Study, series_of

GIB = 2**30
# A prediction's two ends: the first is the fastest that the arithmetic allows, the second there is at full effort only.
BOUNDS = ("roofline", "cycles")
FITS, DOES_NOT_FIT, FAILED, MISSING = "fits", "does not fit", "failed", "not compiled"
Row = dict[str, Any]
# Keys of a row, in the CSV's order. seconds: of a step; usd: per million pairs; efficiency: against the smallest pod.
COLUMNS = (
    *("study", "point", "status", "config", "topology", "slices", "chips", "mesh", "batch", "pairs", "remat"),
    *("micro_batches", "effort"),
    *("hbm_size_gib", "hbm_peak_gib", "useful_flops", "waste", "communication_share", "ici_gib", "dcn_gib"),
    *(f"{figure}_{bound}" for figure in ("seconds", "mfu", "pairs_per_second") for bound in (*BOUNDS, "calibrated")),
    *(f"efficiency_{bound}" for bound in BOUNDS),
    *(f"usd_{bound}" for bound in (*BOUNDS, "calibrated")),
    *("compile_seconds", "compile_gib", "error"),
)


def study_rows(
    study: Study, entries: Mapping[Point, Entry], prices: Mapping[str, float], factors: Factors | None = None
) -> list[Row]:
    """One row per point, in the study's order; a figure that there is not is None. prices: USD per chip-hour."""
    rows = [_row(study, point, entries.get(point), factors) for point in study.points]
    for point, row in zip(study.points, rows, strict=True):
        for bound in (*BOUNDS, "calibrated"):
            pace = row[f"pairs_per_second_{bound}"]
            if pace and row["status"] == FITS and point.chip in prices:
                row[f"usd_{bound}"] = prices[point.chip] * point.chips / 3600 / pace * 1e6
    if study.kind != "grid":
        _compare(study, rows)
    return rows


def _row(study: Study, point: Point, entry: Entry | None, factors: Factors | None) -> Row:
    row: Row = dict.fromkeys(COLUMNS) | {
        "study": study.name,
        "point": point.name,
        "status": MISSING if entry is None else FAILED,
        "config": point.config,
        "topology": point.topology,
        "slices": point.slices,
        "chips": point.chips,
        "mesh": " ".join(f"{axis}={size}" for axis, size in point.mesh),
        "batch": point.batch,
        "effort": point.effort,
        "error": "" if entry is None else entry.error,
    }
    if entry is not None:
        row |= {"compile_seconds": entry.seconds, "compile_gib": entry.peak_gib}
        if entry.report is not None:
            row |= _figures(entry.report, factors)
    return row


def _figures(report: dict, factors: Factors | None) -> Row:
    memory, flops = report["memory"], report.get("flops") or {}
    row = {
        "status": FITS if report["fits"] else DOES_NOT_FIT,
        "mesh": " ".join(f"{axis}={size}" for axis, size in report["mesh"].items() if axis != "slices"),
        "pairs": report.get("pairs"),
        "remat": (report.get("numerics") or {}).get("remat"),
        "micro_batches": max((group["micro_batches"] for group in (report.get("rows") or {}).values()), default=None),
        "hbm_size_gib": memory["size"] / GIB,
        "hbm_peak_gib": None if memory["peak"] is None else memory["peak"] / GIB,
        "useful_flops": flops.get("useful"),
        "waste": report.get("waste"),
        "error": "; ".join(f"{stage}: {said}" for stage, said in (report.get("failures") or {}).items()),
    }
    if report["fits"]:
        row |= _pace(report, factors)
    return row


def _pace(report: dict, factors: Factors | None) -> Row:
    """Of a point that fits."""
    terms, prediction, row = known_terms(report), report["prediction"], {}
    for bound in BOUNDS:
        for key, value in (prediction[bound] or {}).items():
            row[f"{key}_{bound}"] = value
    row["communication_share"] = (terms["communication"] + terms["dcn"]) / prediction["roofline"]["seconds"]
    for network in ("ici", "dcn"):
        sent = (each["bytes"] for each in report.get("collectives") or () if each["network"] == network)
        row[f"{network}_gib"] = sum(sent) / GIB
    if factors is not None and factors.covers(report["chip"]) and effort_of(report) == FULL:  # as it was fitted
        seconds, roofline = calibrated(terms, factors), prediction["roofline"]
        row["seconds_calibrated"] = seconds
        for key in ("mfu", "pairs_per_second"):
            row[f"{key}_calibrated"] = roofline[key] * roofline["seconds"] / seconds
    return {key: value for key, value in row.items() if key in COLUMNS}


def known_terms(report: dict) -> dict[str, float]:
    """The roofline's addends."""
    return {name: report["terms"].get(name, 0.0) for name in TERMS}


def _compare(study: Study, rows: list[Row]) -> None:
    """Pairs a second and chip, over those of the fewest chips of the same series that fit."""
    smallest: dict[tuple, Row] = {}
    pairs = sorted(zip(study.points, rows, strict=True), key=lambda pair: pair[0].chips)
    for point, row in pairs:
        if row["status"] != FITS:
            continue
        one = smallest.setdefault(series_of(point), row)
        for bound in BOUNDS:
            pace = f"pairs_per_second_{bound}"
            if one[pace] and row[pace]:
                row[f"efficiency_{bound}"] = (row[pace] / row["chips"]) / (one[pace] / one["chips"])


def band(row: Row, figure: str) -> tuple[float, float] | None:
    """(least, most) of the bounds of a figure that there are: twice the roofline's at low effort."""
    values = [value for bound in BOUNDS if (value := row[f"{figure}_{bound}"]) is not None]
    return (min(values), max(values)) if values else None
