"""Rows of figures, the table, the CSV and the plots show the same numbers, and those are the reports'."""

import json
from dataclasses import replace

import pytest
from fake_reports import fake_report
from PIL import Image
from rich.console import Console

from virtue_jax.aot.calibration import Factors, calibrated
from virtue_jax.aot.study.answers import answers
from virtue_jax.aot.study.entry import Entry, kept, read_entry
from virtue_jax.aot.study.plots import plots, save_plots
from virtue_jax.aot.study.point import Point
from virtue_jax.aot.study.results import BOUNDS, study_rows
from virtue_jax.aot.study.runner import outcome
from virtue_jax.aot.study.study_file import Study, presets, read_study
from virtue_jax.aot.study.table import cells, csv_rows, csv_text, failures, markdown, print_table

PRICES = {"v5e": 1.2, "v6e": 2.7}


def made(study: Study, failing: int | None = None) -> dict:
    entries = {}
    for i, point in enumerate(study.points):
        asked = {"mesh": dict(point.mesh), "overrides": dict(point.overrides), "slices": point.slices}
        asked |= {"effort": point.effort}
        report = fake_report(point.config, point.topology, point.batch, **asked)
        failed = i == failing
        error = "exit status 2: no such thing, at all" if failed else ""
        entries[point] = Entry(point.inputs(), "key", None if failed else report, error, 60.0, 5.0)
    return entries


def asked(name: str, kind: str, x: str, *points: tuple) -> Study:
    """points: (model, topology, batch, fsdp)."""
    mesh = [(("data", -1), ("fsdp", fsdp), ("tensor", 1)) for *_, fsdp in points]
    made = [
        Point(f"{size} {topology} {batch} {fsdp}", f"configs/virtue_{size}_scar.py", topology, batch, mesh=mesh[i])
        for i, (size, topology, batch, fsdp) in enumerate(points)
    ]
    return Study(name, f"What of {name}?", kind, x, tuple(made))


V5E, V5P = [("v5e:4x4", 512), ("v5e:8x8", 2048), ("v5e:16x16", 8192)], [("v5p:4x4x4", 2048), ("v5p:8x8x8", 16384)]
STUDIES = {
    "weak": asked("weak", "weak", "chips", *[("2b", *pod, 1) for pod in V5E + V5P], *[("7b", *pod, 1) for pod in V5P]),
    "strong": asked("strong", "strong", "chips", *[("2b", f"v5e:{pod}", 2048, 1) for pod in ("8x8", "8x16", "16x16")]),
    "mesh": asked("mesh", "grid", "", *[("2b", *pod, fsdp) for pod in (V5E[0], V5P[0]) for fsdp in (1, 2, 4)]),
    "negatives": asked(
        *("negatives", "grid", "batch"),
        *[("2b", "v5e:4x4", batch, 1) for batch in (512, 1024, 2048, 4096)],
        *[("2b", "v6e:4x4", batch, 1) for batch in (512, 1024)],
    ),
}


@pytest.fixture
def studies() -> dict[str, Study]:
    return STUDIES


def test_a_row_has_the_reports_figures(studies):
    study = studies["weak"]
    entries = made(study)
    for point, row in zip(study.points, study_rows(study, entries, PRICES), strict=True):
        report = entries[point].report
        assert (row["status"], row["chips"], row["batch"]) == ("fits", report["chips"], report["batch"])
        assert row["mfu_cycles"] == report["prediction"]["cycles"]["mfu"]
        assert row["hbm_peak_gib"] == report["memory"]["peak"] / 2**30
        share = (report["terms"]["communication"] + report["terms"]["dcn"]) / report["prediction"]["roofline"][
            "seconds"
        ]
        assert row["communication_share"] == pytest.approx(share)
        assert row["ici_gib"] == pytest.approx(sum(each["bytes"] for each in report["collectives"]) / 2**30)


def test_cost_is_chips_times_hours_times_price_and_nothing_without_a_price(studies):
    study = studies["weak"]
    for point, row in zip(study.points, study_rows(study, made(study), PRICES), strict=True):
        for bound in BOUNDS:
            hours = 1e6 / row[f"pairs_per_second_{bound}"] / 3600
            wanted = pytest.approx(hours * point.chips * PRICES[point.chip]) if point.chip in PRICES else None
            assert row[f"usd_{bound}"] == wanted


@pytest.mark.parametrize("name", ["weak", "strong"])
def test_efficiency_is_pairs_a_second_and_chip_against_the_smallest_pod(studies, name):
    rows = [row for row in study_rows(studies[name], made(studies[name]), {}) if row["topology"].startswith("v5e")]
    first, last = rows[0], rows[-1]
    assert first["efficiency_cycles"] == first["efficiency_roofline"] == 1
    growth = last["pairs_per_second_cycles"] / first["pairs_per_second_cycles"]
    assert last["efficiency_cycles"] == pytest.approx(growth / (last["chips"] / first["chips"]))
    assert last["efficiency_cycles"] < 1


def test_calibrated_figures_are_of_the_chips_that_were_measured(studies):
    study, factors = studies["mesh"], Factors(1.2, 1.5, 2.0, ("v5e",))
    entries = made(study)
    for point, row in zip(study.points, study_rows(study, entries, PRICES, factors), strict=True):
        if point.chip != "v5e":
            assert row["seconds_calibrated"] is row["mfu_calibrated"] is row["usd_calibrated"] is None
            continue
        seconds = calibrated(entries[point].report["terms"], factors)
        assert row["seconds_calibrated"] == seconds
        assert row["mfu_calibrated"] * seconds == pytest.approx(row["mfu_cycles"] * row["seconds_cycles"])


def test_what_does_not_fit_has_memory_and_no_pace(studies):
    study = studies["negatives"]
    small = replace(study, points=(study.points[3],))
    (row,) = study_rows(small, made(small), PRICES)
    assert row["status"] == "does not fit" and row["hbm_peak_gib"] > row["hbm_size_gib"]
    assert all(row[f"{figure}_{bound}"] is None for figure in ("mfu", "usd", "seconds") for bound in BOUNDS)


def test_what_does_not_fit_by_an_unknown_amount_is_shown_all_the_same(studies):
    """The compiler gives up on a program without saying how much it takes."""
    for study in (studies["negatives"], replace(studies["negatives"], x="")):
        entries = made(study)
        point = study.points[3]
        report = entries[point].report
        memory = report["memory"] | {"peak": None, "headroom": None}
        blind = report | {"memory": memory, "failures": {"gradients": "out of memory"}}
        entries[point] = replace(entries[point], report=blind)
        rows = study_rows(study, entries, {})
        assert rows[3]["status"] == "does not fit" and rows[3]["error"] == "gradients: out of memory"
        headers, lines = cells(rows)
        assert lines[3][headers.index("HBM GiB")] == ">15.8/15.8"
        assert "more than all" in outcome(entries[point])
        assert set(plots(study, rows, entries)) >= {"memory", "mfu"}
        if study.x:
            assert "**2,048** pairs a step fit (12.7 of 15.8 GiB); 4,096 do not" in answers(study, rows, entries)[0]


@pytest.mark.parametrize("study", [*STUDIES.values(), *map(read_study, presets())], ids=lambda study: study.name)
def test_csv_and_tables_show_the_same_rows(study):
    rows = study_rows(study, made(study, failing=1), PRICES)
    again = csv_rows(csv_text(rows))
    assert [{key: None if value == "" else value for key, value in row.items()} for row in rows] == again
    headers, lines = cells(again)
    assert (headers, lines) == cells(rows)
    text = markdown(rows).splitlines()
    assert text[0] == "| " + " | ".join(headers) + " |" and len(text) == len(rows) + 2
    for line, told in zip(lines, text[2:], strict=True):
        assert told == "| " + " | ".join(line) + " |"


def test_a_terminal_that_is_narrow_loses_no_figure(studies, capsys):
    rows = study_rows(studies["weak"], made(studies["weak"]), PRICES)
    print_table(Console(width=40), "?", rows)
    printed = capsys.readouterr().out
    for line in cells(rows)[1]:
        assert all(cell in printed for cell in line)


def test_a_failed_point_is_in_the_table_with_its_error(studies):
    study = studies["mesh"]
    rows = study_rows(study, made(study, failing=2), PRICES)
    assert rows[2]["status"] == "failed"
    assert failures(rows) == [f"{study.points[2].name}: failed: exit status 2: no such thing, at all"]
    entries = {point: entry for point, entry in made(study).items() if point != study.points[2]}
    assert failures(study_rows(study, entries, PRICES)) == [f"{study.points[2].name}: not compiled: no report of it"]


def test_scaling_plots_have_a_line_per_bound_and_series(studies):
    study = studies["weak"]
    figures = plots(study, study_rows(study, made(study), PRICES), made(study))
    assert set(figures) == {"mfu", "time", "memory", "network", "pace", "efficiency", "cost"}
    (axes,) = figures["mfu"].axes
    assert len(axes.get_lines()) == 2 * 3  # 2B on v5e and v5p, 7B on v5p
    assert len(figures["efficiency"].axes[0].get_lines()) == 2 * 3 + 1  # and the ideal
    assert len(figures["cost"].axes[0].get_lines()) == 2  # no price for v5p
    assert axes.get_xlabel() == "chips" and axes.get_ylabel() == "predicted MFU"
    rows = study_rows(study, made(study), PRICES)
    drawn = sorted(value for line in axes.get_lines() for value in line.get_ydata())
    assert drawn == pytest.approx(sorted(row[f"mfu_{bound}"] for row in rows for bound in BOUNDS))


def test_batch_plots_have_a_line_per_pod_and_crosses_where_it_does_not_fit(studies):
    study = studies["negatives"]
    figures = plots(study, study_rows(study, made(study), {}), made(study))
    lines = figures["memory"].axes[0].get_lines()
    assert sum(line.get_linestyle() == "-" for line in lines) == 2
    assert sum(line.get_marker() == "x" for line in lines) == 1
    assert "cost" not in figures


def test_grid_plots_have_a_bar_per_point_that_fits(studies):
    study = studies["mesh"]
    rows = study_rows(study, made(study, failing=0), PRICES)
    figures = plots(study, rows, made(study, failing=0))
    for name in ("mfu", "network"):
        axes = figures[name].axes[0]
        assert len(axes.patches) == len(study.points) - 1
        assert [label.get_text() for label in axes.get_yticklabels()] == [point.name for point in study.points]
        assert "failed" in [text.get_text() for text in axes.texts]


def test_plots_are_written_as_images(studies, tmp_path):
    study = studies["mesh"]
    one = replace(study, points=study.points[:2])
    figures = plots(one, study_rows(one, made(one), {}), made(one))
    for path in save_plots({"mfu": figures["mfu"]}, tmp_path, "mesh-").values():
        image = Image.open(path)
        assert path.name == "mesh-mfu.png" and image.width > 800
        assert len(image.convert("RGB").getcolors(1 << 20)) > 20, "a page of one colour"


def test_an_entry_is_json_that_is_read_again(studies, tmp_path):
    study = studies["weak"]
    entries = made(study, failing=0)
    for point, entry in entries.items():
        entry.write(tmp_path / point.file_name())
        assert read_entry(tmp_path / point.file_name()) == entry
        json.loads((tmp_path / point.file_name()).read_text())
    assert kept(tmp_path, study.points) == entries
    with pytest.raises(ValueError, match="no whole report"):
        kept(tmp_path / "nowhere", study.points)
