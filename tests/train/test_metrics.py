import json

import pytest

from virtue_jax.train.metrics import MetricsLog


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_appends_after_the_restored_step(tmp_path):
    log = MetricsLog(tmp_path, start=0, steps=9)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1.0 / step})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    log = MetricsLog(tmp_path, start=2, steps=9)
    log.write(3, {"loss": 7.0})
    log.close()
    assert [(r["step"], r["loss"]) for r in lines(tmp_path)] == [(1, 1.0), (2, 0.5), (3, 7.0)]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_loss_that_is_not_finite_is_written_down_and_stops_the_run(tmp_path):
    log = MetricsLog(tmp_path, start=0, steps=9)
    with pytest.raises(FloatingPointError, match="step 5"):
        log.write(5, {"loss": float("nan")})
    log.close()
    assert lines(tmp_path)[0]["step"] == 5
