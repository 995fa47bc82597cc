"""Factors that made the measured steps are found again; the error is told honestly; what cannot be is refused."""

import json

import numpy as np
import pytest
from fake_reports import fake_report, write_report
from rich.console import Console

from virtue_jax.aot.calibration import Factors, calibrated, load
from virtue_jax.aot.study.calibrate import calibrate
from virtue_jax.aot.study.fit import calibration, fit
from virtue_jax.aot.study.measured import Measured, read_measured

TRUE = Factors(1.3, 2.1, 1.7, ("v5e",))
TERMS = [
    {"matrix": 2.0, "attention": 0.5, "memory": 0.2, "communication": 0.1, "dcn": 0.0},
    {"matrix": 1.0, "attention": 1.5, "memory": 0.1, "communication": 0.2, "dcn": 0.0},
    {"matrix": 0.5, "attention": 0.2, "memory": 0.3, "communication": 1.2, "dcn": 0.4},
    {"matrix": 3.0, "attention": 0.1, "memory": 0.1, "communication": 0.3, "dcn": 0.1},
]


def measured(terms: dict, noise: float = 0.0, chip: str = "v5e") -> Measured:
    seconds = calibrated(terms, TRUE) * (1 + noise)
    return Measured("run", chip, terms, sum(terms.values()), seconds, 10, {})


def test_known_factors_are_recovered():
    factors, freed = fit([measured(terms) for terms in TERMS])
    assert freed == 3 and factors.chips == ("v5e",)
    np.testing.assert_allclose([factors.matrix, factors.attention, factors.communication], [1.3, 2.1, 1.7], rtol=1e-9)


def test_one_run_frees_one_factor_and_two_free_two():
    one, freed = fit([measured(TERMS[0])])
    assert freed == 1 and one.matrix == one.attention == one.communication
    assert calibrated(TERMS[0], one) == pytest.approx(calibrated(TERMS[0], TRUE))
    two, freed = fit([measured(TERMS[0]), measured(TERMS[2])])
    assert freed == 2 and two.matrix == two.attention != two.communication


def test_runs_that_are_alike_free_no_more_factors_than_they_tell_apart():
    alike = [{name: seconds * scale for name, seconds in TERMS[0].items()} for scale in (1, 2, 4)]
    assert fit([measured(terms) for terms in alike])[1] == 1
    without = [terms | {"communication": 0.0, "dcn": 0.0} for terms in TERMS]
    assert fit([measured(terms) for terms in without])[1] == 1


def test_no_factor_is_negative():
    """A second run with more attention took less time than matrices alone would."""
    runs = [measured(TERMS[0]), measured(TERMS[2]), measured(TERMS[1], noise=-0.9)]
    factors, _ = fit(runs)
    assert min(factors.matrix, factors.attention, factors.communication) >= 0


def test_errors_are_those_of_the_runs_and_of_runs_left_out():
    noise = (0.05, -0.04, 0.03, -0.02)
    runs = [measured(terms, n) for terms, n in zip(TERMS, noise, strict=True)]
    found = calibration(runs)
    factors = Factors(**found["factors"])
    for i, (run, told) in enumerate(zip(runs, found["runs"], strict=True)):
        others = fit(runs[:i] + runs[i + 1 :])[0]
        assert told["uncalibrated"] == pytest.approx(sum(run.terms.values()) / run.seconds - 1)
        assert told["in_sample"] == pytest.approx(calibrated(run.terms, factors) / run.seconds - 1)
        assert told["left_out"] == pytest.approx(calibrated(run.terms, others) / run.seconds - 1)
    assert found["errors"]["in_sample"] < found["errors"]["left_out"] < found["errors"]["uncalibrated"]
    assert calibration(runs[:1])["errors"]["left_out"] is None


def run_folder(tmp_path, name: str, records: list[dict], config: dict | None = None):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 9')
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def report_file(tmp_path, name: str = "report.json", **changes):
    report = fake_report("configs/virtue_2b_scar.py", "v5e:4x4", 512) | changes
    write_report(tmp_path / name, report)
    return tmp_path / name


def record(step: int, seconds: float | None, wait: float = 0.0) -> dict:
    return {"step": step, "time": 0.0, "loss": 1.0, "seconds_per_step": seconds, "data_wait_seconds": wait}


def test_the_median_leaves_out_the_first_record_and_steps_that_waited_for_data(tmp_path):
    steps = [
        record(1, 90.0),
        record(10, 13.0),
        record(20, 14.0),
        record(30, 30.0, 20.0),
        record(40, None),
        record(50, 15.0),
    ]
    run = read_measured(run_folder(tmp_path, "run", steps), report_file(tmp_path))
    assert (run.seconds, run.used) == (14.0, 3)
    assert run.left == {"first": 1, "without a time": 1, "waiting for data": 1}


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([], "0 of 0 records"),
        ([record(1, 9.0), record(2, 9.0), record(3, 9.0)], "2 of 3 records"),
        ([record(n, 9.0, 5.0) for n in range(1, 9)], "7 waiting for data"),
    ],
)
def test_a_run_without_steps_to_measure_is_refused(tmp_path, steps, told):
    with pytest.raises(ValueError, match=told):
        read_measured(run_folder(tmp_path, "run", steps), report_file(tmp_path))


GOOD = [record(n, 13.0) for n in range(1, 8)]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"batch_size": 1024}, "batch_size: 1024 in the run, 512 in the report"),
        ({"numerics": {"remat": "none"}}, "numerics.remat: 'none' in the run, 'layer' in the report"),
        ({"mesh": {"data": -1, "fsdp": 4}}, "mesh.fsdp: 4 in the run, 1 in the report"),
        ({"data": {"rows": {"images": {"rows": 64, "shape": {}}}}}, "rows.images.rows: 64 in the run, 128"),
        ({"data": {"rows": {"other": {}}}}, "row group 'images': only in the report"),
    ],
)
def test_a_run_of_another_configuration_is_refused(tmp_path, config, told):
    with pytest.raises(ValueError, match=told):
        read_measured(run_folder(tmp_path, "run", GOOD, config), report_file(tmp_path))


def test_what_the_run_leaves_open_is_no_mismatch(tmp_path):
    config = {"batch_size": 512, "numerics": {"remat": "auto"}, "mesh": {"data": -1, "fsdp": 1}, "data": {"rows": {}}}
    assert read_measured(run_folder(tmp_path, "run", GOOD, config), report_file(tmp_path)).used == 6
    chosen = run_folder(tmp_path, "chosen", GOOD, config | {"numerics": {"attention": "splash"}})
    assert read_measured(chosen, report_file(tmp_path, numerics={"attention": "auto"})).used == 6


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"fits": False}, "does not fit"), ({"format": 2}, "its format is 2, not 1"), ({"terms": None}, "no prediction")],
)
def test_a_report_that_predicts_no_step_is_refused(tmp_path, changes, told):
    with pytest.raises(ValueError, match=told):
        read_measured(run_folder(tmp_path, "run", GOOD), report_file(tmp_path, **changes))


def test_a_calibration_is_written_and_loaded_and_told(tmp_path):
    folder, report = run_folder(tmp_path, "run", GOOD), report_file(tmp_path)
    console = Console(record=True, width=200)
    calibrate([(str(folder), str(report))], tmp_path / "deep/calibration.json", console)
    factors = load(tmp_path / "deep/calibration.json")
    assert calibrated(json.loads(report.read_text())["terms"], factors) == pytest.approx(13.0)
    assert factors.covers("v5e") and not factors.covers("v5p")
    told = console.export_text()
    assert "6 of 7" in told and "how well others are predicted is unknown" in told
    with pytest.raises(ValueError, match="given twice"):
        calibrate([(str(folder), str(report))] * 2, tmp_path / "again.json", console)


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"format": 1, "chips": [], "factors": {"matrix": 1}}']
    + [
        json.dumps({"format": number, "chips": [], "factors": {"matrix": x, "attention": 0, "communication": 0}})
        for number, x in ((2, 1.0), (1, -1.0), (1, 0.0), (1, "a"))
    ],
)
def test_what_is_no_calibration_is_refused(tmp_path, text):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(ValueError, match=r"file\.json"):
        load(tmp_path / "file.json")


def test_a_term_without_a_factor_is_refused():
    with pytest.raises(ValueError, match="terms latency"):
        calibrated({"matrix": 1.0, "latency": 0.1}, TRUE)
