"""Points of low effort have a roofline and no cycles: they are shown with that alone, and compared with each other."""

from dataclasses import replace

import pytest
from fake_reports import fake_report, write_report
from study_run import run_points

from virtue_jax.aot.calibration import Factors
from virtue_jax.aot.study.answers import answers
from virtue_jax.aot.study.entry import Entry, misreport
from virtue_jax.aot.study.measured import read_measured
from virtue_jax.aot.study.page import Result, write_page
from virtue_jax.aot.study.plots import plots
from virtue_jax.aot.study.point import Point
from virtue_jax.aot.study.results import study_rows
from virtue_jax.aot.study.runner import outcome
from virtue_jax.aot.study.study_file import Study
from virtue_jax.aot.study.table import cells, csv_rows, csv_text

CONFIG = "configs/virtue_2b_scar.py:large"
NOTE = "they have no cycles, and their roofline is pessimistic"


def points(*asked: tuple[str, int, int], effort: str = "low") -> tuple[Point, ...]:
    """asked: (topology, batch, fsdp)."""
    return tuple(
        Point(f"{topology} {batch} {fsdp} {effort}", CONFIG, topology, batch, 1, mesh_of(fsdp), effort=effort)
        for topology, batch, fsdp in asked
    )


def mesh_of(fsdp: int) -> tuple[tuple[str, int], ...]:
    return ("data", -1), ("fsdp", fsdp), ("tensor", 1)


def made(study: Study) -> dict[Point, Entry]:
    return {
        each: Entry(
            each.inputs(),
            "key",
            fake_report(each.config, each.topology, each.batch, mesh=dict(each.mesh), effort=each.effort),
        )
        for each in study.points
    }


def study(kind: str, x: str, *asked: Point) -> Study:
    return Study(kind, "Which is it?", kind, x, asked)


PODS = ("v5e:4x4", 512, 1), ("v5e:16x16", 8192, 1)
LOW, FULL = points(*PODS), points(*PODS, effort="full")
MESHES = points(("v5e:4x4", 512, 1), ("v5e:4x4", 512, 4))
WEAK, MIXED = study("weak", "chips", *LOW), study("weak", "chips", *FULL, *LOW)


def slower(entries: dict[Point, Entry], asked: Point, times: float) -> dict[Point, Entry]:
    report = entries[asked].report
    old = report["prediction"]["roofline"]
    new = {key: value * times if key == "seconds" else value / times for key, value in old.items()}
    report = report | {"prediction": report["prediction"] | {"roofline": new}}
    return entries | {asked: replace(entries[asked], report=report)}


def said(asked: Study, entries: dict[Point, Entry]) -> list[str]:
    return answers(asked, study_rows(asked, entries, {}), entries)


@pytest.mark.parametrize(("effort", "whole"), [("low", True), ("full", False)])
def test_only_a_report_of_low_effort_may_lack_cycles(effort, whole):
    report = fake_report(CONFIG, "v5e:4x4", 512, effort=effort)
    report["prediction"]["cycles"] = None
    assert (misreport(report) == "") == whole
    report["prediction"]["roofline"] = None
    assert "no prediction by the roofline" in misreport(report)


def test_rows_table_and_csv_have_the_roofline_alone():
    rows = study_rows(MIXED, made(MIXED), {"v5e": 1.0}, Factors(1.2, 1.5, 2.0, ("v5e",)))
    for row in rows:
        low = row["effort"] == "low"
        for figure in ("seconds", "mfu", "pairs_per_second", "efficiency", "usd"):
            assert row[f"{figure}_roofline"] is not None and (row[f"{figure}_cycles"] is None) == low
        assert (row["seconds_calibrated"] is None) == low, "factors are of steps as they run: at full effort"
    headers, lines = cells(rows)
    assert [line[headers.index("effort")] for line in lines] == ["full", "full", "low", "low"]
    assert [".." in line[headers.index("MFU")] for line in lines] == [True, True, False, False]
    assert cells(csv_rows(csv_text(rows))) == (headers, lines)


def test_efficiency_is_against_the_smallest_pod_of_the_same_effort():
    entries = slower(slower(made(MIXED), LOW[0], 2.0), LOW[1], 2.0)
    full, low = ([row["efficiency_roofline"] for row in study_rows(MIXED, entries, {})][i : i + 2] for i in (0, 2))
    assert full[0] == low[0] == 1 and low[1] == pytest.approx(full[1])


def test_the_same_points_in_both_efforts_are_two_series():
    first, second, note = said(MIXED, made(MIXED))
    assert first.startswith("2b_scar:large on v5e, 16 to 256") and "roofline only" not in first
    assert second.startswith("2b_scar:large on v5e, low effort, 16 to 256") and "by the roofline only" in second
    assert note.startswith("2 of 4 points are of low effort") and NOTE in note
    axes = plots(MIXED, study_rows(MIXED, made(MIXED), {}), made(MIXED))["efficiency"].axes[0]
    assert len(axes.get_lines()) == 2 + 1 + 1  # both bounds of full effort, the roofline of low, the ideal
    assert {"2b_scar v5e full effort", "2b_scar v5e low effort"} <= set(axes.get_legend_handles_labels()[1])


@pytest.mark.parametrize(("asked", "told"), [(WEAK, "roofline only (low effort)"), (MIXED, "none at low effort")])
def test_lines_legends_tell_what_circles_are(asked, told):
    figure = plots(asked, study_rows(asked, made(asked), {}), made(asked))["mfu"]
    assert told in figure.legends[0].get_title().get_text()


def test_a_bar_without_cycles_is_a_circle_at_the_roofline():
    asked = study("grid", "", *MESHES, *FULL[:1])
    rows = study_rows(asked, made(asked), {})
    figures = plots(asked, rows, made(asked))
    axes = figures["mfu"].axes[0]
    assert len(axes.patches) == 1
    circles = [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() == "o"]
    assert circles == [row["mfu_roofline"] for row in rows[:2]]
    assert "bar: cycles .. roofline, circle: roofline only (low effort)" in axes.get_xlabel()
    alone = study("grid", "", *MESHES)
    time = plots(alone, study_rows(alone, made(alone), {}), made(alone))["time"].axes[0]
    assert not time.get_lines() and "low effort: no cycles" in time.get_xlabel()


def test_answers_on_meshes_compare_like_with_like_by_the_roofline_only():
    asked = study("grid", "", *MESHES, FULL[0])
    low, full, note = said(asked, made(asked))
    assert "batch 512, low effort: **data** is fastest" in low and "by the roofline only" in low
    assert "cycles" not in low and "ahead of fsdp 4" in low
    assert "batch 512: **data** fits (" in full and "roofline only" not in full
    assert note.startswith("2 of 3 points") and len(said(study("grid", "", *FULL), made(MIXED))) == 2


def test_batches_of_low_effort_are_a_line_of_their_own():
    asked = study("grid", "batch", *points(("v5e:4x4", 512, 1), ("v5e:4x4", 4096, 1)), *FULL[:1])
    low, full, _ = said(asked, made(asked))
    assert "(data, low effort): **512** pairs a step fit" in low and "4,096 do not" in low
    assert "(data): **512**" in full and "no larger batch" in full


def test_a_page_of_both_efforts_tells_what_low_means(tmp_path):
    write_page(tmp_path / "page.md", [Result(MIXED, study_rows(MIXED, made(MIXED), {}), made(MIXED))], {})
    text = (tmp_path / "page.md").read_text()
    assert "4 compilations (2 of low effort; " in text and NOTE in text and "Points of low effort" in text
    assert len(list((tmp_path / "page/reports").glob("*.json"))) == 4


def test_a_compilation_of_low_effort_is_asked_and_told(tmp_path):
    entries = run_points([LOW[0], FULL[0]], tmp_path)
    assert entries[LOW[0]].report["prediction"]["cycles"] is None and "by the roofline only" in outcome(entries[LOW[0]])
    assert entries[FULL[0]].report["prediction"]["cycles"] and ".." in outcome(entries[FULL[0]])


def test_a_report_of_low_effort_is_no_measure_of_a_run(tmp_path):
    write_report(tmp_path / "report.json", fake_report(CONFIG, "v5e:4x4", 512, effort="low"))
    with pytest.raises(ValueError, match="expected a report of full effort, as runs are compiled, got low"):
        read_measured(tmp_path, tmp_path / "report.json")
