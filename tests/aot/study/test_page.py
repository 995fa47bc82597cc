"""What the page says follows from the figures: other reports, other sentences."""

from dataclasses import replace

import pytest
from fake_reports import fake_report

from virtue_jax.aot.study.answers import answers
from virtue_jax.aot.study.entry import Entry
from virtue_jax.aot.study.page import Result, complete, write_page
from virtue_jax.aot.study.point import Point
from virtue_jax.aot.study.results import study_rows
from virtue_jax.aot.study.study_file import Study

CONFIG = "configs/virtue_2b_scar.py:large"
WHOLE, SPLIT, TENSOR = ((("data", -1), ("fsdp", f), ("tensor", t)) for f, t in ((1, 1), (4, 1), (1, 2)))


def study(kind: str, x: str, *points: Point) -> Study:
    return Study("study", "Which is it?", kind, x, points)


def point(topology: str, batch: int, mesh=WHOLE) -> Point:
    return Point(f"{topology} {batch} {mesh}", CONFIG, topology, batch, mesh=mesh)


def made(*points: Point) -> dict[Point, Entry]:
    reports = [fake_report(each.config, each.topology, each.batch, mesh=dict(each.mesh)) for each in points]
    return {each: Entry(each.inputs(), "key", report) for each, report in zip(points, reports, strict=True)}


def slower(entry: Entry, bound: str, times: float) -> Entry:
    """With a bound at `times` the seconds."""
    old = entry.report["prediction"][bound]
    new = {
        "seconds": old["seconds"] * times,
        "mfu": old["mfu"] / times,
        "pairs_per_second": old["pairs_per_second"] / times,
    }
    prediction = entry.report["prediction"] | {bound: new}
    return replace(entry, report=entry.report | {"prediction": prediction})


def said(asked: Study, entries: dict[Point, Entry]) -> list[str]:
    return answers(asked, study_rows(asked, entries, {}), entries)


def test_the_fastest_mesh_is_named_with_its_lead():
    points = [point("v5e:4x4", 512, mesh) for mesh in (WHOLE, SPLIT, TENSOR)]
    entries = made(*points)
    (line,) = said(study("grid", "", *points), entries)
    assert "2b_scar:large on v5e 4x4, batch 512: **data** is fastest" in line and "ahead of tensor 2" in line
    entries[points[0]] = slower(slower(entries[points[0]], "cycles", 1.5), "roofline", 1.5)
    (line,) = said(study("grid", "", *points), entries)
    assert "**tensor 2** is fastest" in line and "ahead of fsdp 4" in line


def test_bounds_that_disagree_are_told():
    points = [point("v5e:4x4", 512, mesh) for mesh in (WHOLE, SPLIT)]
    entries = made(*points)
    entries[points[0]] = slower(entries[points[0]], "cycles", 1.5)
    (line,) = said(study("grid", "", *points), entries)
    assert "the bounds disagree: **fsdp 4** by the compiler's cycles" in line and "**data** by the roofline" in line


def test_what_does_not_fit_is_no_candidate():
    points = [point("v5e:4x4", 3200, mesh) for mesh in (WHOLE, SPLIT)]
    (line,) = said(study("grid", "", *points), made(*points))
    assert line.endswith("**fsdp 4** is all that fits. data does not fit.")
    points = [point("v5e:4x4", 16384, mesh) for mesh in (WHOLE, SPLIT)]
    (line,) = said(study("grid", "", *points), made(*points))
    assert line.endswith("nothing fits. data, fsdp 4 do not fit.")


def test_the_largest_batch_that_fits_is_named_with_the_next():
    points = [point("v5e:4x4", batch) for batch in (1024, 2048, 4096)]
    (line,) = said(study("grid", "batch", *points), made(*points))
    assert "**2,048** pairs a step fit (12.7 of 15.8 GiB); 4,096 do not." in line
    assert "From 2,048 to 4,096 it is 7.68 GiB a chip, 3932 MiB per 1,024 pairs." in line
    (line,) = said(study("grid", "batch", *points[:2]), made(*points[:2]))
    assert "no larger batch was asked for" in line
    entries = made(*points[:2])
    entries[points[1]].report["rows"]["images"]["micro_batches"] = 8
    (line,) = said(study("grid", "batch", *points[:2]), entries)
    assert "2,048 remat" in line and "and 8 micro-batches." in line and "MiB per 1,024" not in line
    (line,) = said(study("grid", "batch", points[2]), made(points[2]))
    assert "none of the batches asked for fits" in line


def test_weak_scaling_names_its_efficiency_and_what_grows():
    points = [point("v5e:4x4", 512), point("v5e:16x16", 8192)]
    entries = made(*points)
    (line,) = said(study("weak", "chips", *points), entries)
    assert "16 to 256 chips (16 times)" in line and "0.998 of the pairs a second" in line
    assert "What grows most is the network between chips: 0.160 s" in line and "leave 0.0800 s" in line
    entries[points[1]] = slower(slower(entries[points[1]], "cycles", 2), "roofline", 2)
    (line,) = said(study("weak", "chips", *points), entries)
    assert "0.499 of the pairs a second" in line and "a doubling keeps 0.840 of" in line


def test_strong_scaling_names_the_speed_up():
    points = [point("v5e:8x8", 2048), point("v5e:16x16", 2048)]
    (line,) = said(study("strong", "chips", *points), made(*points))
    first, last = (entry.report["prediction"]["cycles"]["seconds"] for entry in made(*points).values())
    assert f"a batch of 2,048 is done {first / last:.2f} times sooner" in line
    (line,) = said(study("strong", "chips", points[0]), made(points[0]))
    assert "one pod fits, so there is nothing to compare" in line


@pytest.fixture
def results() -> list[Result]:
    weak = study("weak", "chips", point("v5e:4x4", 512), point("v5e:16x16", 8192))
    grid = replace(study("grid", "", point("v5e:4x4", 512), point("v5p:4x4x4", 512, SPLIT)), name="grid")
    entries = made(*weak.points, *grid.points)
    failed = Entry(grid.points[1].inputs(), "key", None, "exit status 2: why not")
    entries[grid.points[1]] = failed
    own = [{each: entries[each] for each in asked.points} for asked in (weak, grid)]
    prices = {"v5e": 1.0}
    return [Result(asked, study_rows(asked, its, prices), its) for asked, its in zip((weak, grid), own, strict=True)]


def test_a_page_shows_every_study_and_links_what_lies_beside_it(tmp_path, results):
    page = tmp_path / "docs/scaling.md"
    write_page(page, results, {"v5e": 1.0})
    text = page.read_text()
    assert text.count("## Which is it?") == 2 and "## What is sent in a step?" in text
    assert "3 compilations (jax 0.0.fake, libtpu 0.0.fake; 0 minutes" in text and "**1 have no report**" in text
    assert "v5e 1." in text and "exit status 2: why not" in text and "slots of all chips" in text
    assert "| slots of all chips | all-gather | data | ici | gradients | no | 3.00 | 31,200 | 10.0 |" in text
    for image in ("scaling/study-efficiency.png", "scaling/grid-mfu.png", "scaling/study-pace.png"):
        assert f"({image})" in text and (page.parent / image).stat().st_size > 10_000
    lines = (page.parent / "scaling/points.csv").read_text().splitlines()
    assert len(lines) == 1 + 4
    assert not complete(results) and complete(results[:1])
    assert len(list((page.parent / "scaling/reports").glob("*.json"))) == 3


def test_a_page_is_the_same_when_written_again(tmp_path, results):
    page = tmp_path / "scaling.md"
    small = [replace(results[1], rows=study_rows(results[1].study, results[1].entries, {}))]
    write_page(page, small, {})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "scaling/old-plot.png").write_bytes(b"")
    write_page(page, small, {})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert "No prices were given" in page.read_text() and "grid-cost.png" not in page.read_text()
