"""What a run does when something goes wrong: numbers that are not finite, images that cannot be read, kills."""

import json
import subprocess
import sys
from pathlib import Path

import kill_and_resume
import pytest
import recorded_train
import survival_run

from virtue_jax.config import from_dict
from virtue_jax.train.config import TrainConfig
from virtue_jax.train.loop import train
from virtue_jax.train.reproduce import reproduce

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    kill_and_resume._make_scenes(folder)
    return folder


def config(scenes: Path, **changes) -> TrainConfig:
    given = survival_run.get_config()
    given.data.sources.scenes.path = str(scenes)
    for name, value in changes.items():
        given.update_from_flattened_dict({name.replace("__", "."): value})
    return from_dict(TrainConfig, given.to_dict())


def records(workdir: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


DIVERGES = {"optimizer__learning_rate": 1e30, "optimizer__warmup_steps": 2, "steps": 12}


def test_a_step_that_is_not_finite_stops_the_run_and_can_be_run_again(scenes, tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"at step \d+; its rows: .*SCaR_train_scenes.*reproduce .*nonfinite_step_"
    ):
        train(config(scenes, **DIVERGES), tmp_path)
    (kept,) = tmp_path.glob("nonfinite_step_*")
    step = int(kept.name.rsplit("_", 1)[1])
    assert all(int(saved.name.split("_")[1]) < step for saved in (tmp_path / "checkpoints").glob("step_*"))
    metrics, counts = reproduce(kept)
    said = json.loads((kept / "run.json").read_text())["metrics"]
    assert repr(metrics["loss"]) == said["loss"]
    assert any(name.startswith("gradient ") for name in counts)
