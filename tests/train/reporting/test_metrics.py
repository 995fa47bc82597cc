import io
import json

import pytest
from rich.console import Console

from virtue_jax.train.reporting.metrics import MetricsLog


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=80)


def test_a_resumed_run_appends_after_the_restored_step(tmp_path, console):
    log = MetricsLog(tmp_path, start=0, steps=9, console=console)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1.0 / step})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    log = MetricsLog(tmp_path, start=2, steps=9, console=console)
    log.write(3, {"loss": 7.0})
    log.close()
    assert [(r["step"], r["loss"]) for r in lines(tmp_path)] == [(1, 1.0), (2, 0.5), (3, 7.0)]
    assert list((tmp_path / "tensorboard").iterdir())


def test_the_console_gets_one_line_per_logged_step(tmp_path, console):
    log = MetricsLog(tmp_path, start=0, steps=200, console=console)
    log.write(7, {"loss": 1.25, "accuracy": 0.5, "examples_per_second": 31.25, "mfu": 0.4321, "unshown": 3.0})
    log.write(8, {"loss": 1.0, "bad_rows": 0.0, "skipped": 2.0})
    log.close()
    said = [line for line in console.file.getvalue().splitlines() if line.startswith("step")]
    assert said == [
        "step   7/200  loss 1.2500  accuracy 0.500  examples_per_second 31.2  mfu 0.432",
        "step   8/200  loss 1.0000  skipped 2",
    ]


def test_the_file_stays_json_where_a_number_is_not_finite(tmp_path, console):
    log = MetricsLog(tmp_path, start=0, steps=9, console=console)
    log.write(5, {"loss": float("nan"), "gradient_norm": float("inf")})
    log.close()
    assert lines(tmp_path)[0]["loss"] is None and lines(tmp_path)[0]["gradient_norm"] is None


def test_what_is_found_later_joins_the_record_of_its_step(tmp_path, console):
    log = MetricsLog(tmp_path, start=0, steps=9, console=console)
    log.write(4, {"loss": 1.0})
    log.add(4, {"scar/prompt/hit@1": 0.5})
    log.write(5, {"loss": 0.9})
    log.add(6, {"scar/prompt/hit@1": 0.6})
    log.close()
    found = [(r["step"], r.get("loss"), r.get("scar/prompt/hit@1")) for r in lines(tmp_path)]
    assert found == [(4, 1.0, 0.5), (5, 0.9, None), (6, None, 0.6)]
