"""What a run does when something goes wrong: numbers that are not finite, images that cannot be read, kills."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import kill_and_resume
import pytest
import survival_run

from virtue_jax.config import from_dict
from virtue_jax.train.loop import train
from virtue_jax.train.reproduce import reproduce
from virtue_jax.train.step.config import TrainConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    kill_and_resume.make_scenes(folder)
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
EVERY_STEP = {"log_every": 1}


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


def test_steps_that_are_not_finite_are_skipped_up_to_the_limit(scenes, tmp_path):
    diverging = config(scenes, **DIVERGES, **EVERY_STEP, nonfinite="skip", skip_limit=2)
    with pytest.raises(FloatingPointError, match=r"with it 3 steps were not finite, more than config.skip_limit 2"):
        train(diverging, tmp_path)
    skipped = [record["step"] for record in records(tmp_path, "nonfinite.jsonl")]
    assert len(skipped) == 3
    assert [r["skipped"] for r in records(tmp_path)][-1] == 2  # logged before the step that ended the run


def test_what_cannot_be_read_is_named_once_and_replaced_and_the_rest_is_told(scenes, tmp_path):
    broken = shutil.copytree(scenes, tmp_path / "scenes")
    images = sorted((broken / "images").rglob("*.png"))
    images[3].write_bytes(images[3].read_bytes()[:50])
    given = config(broken, steps=14, data__bad_rows=0.5, checkpoint_minutes=1e-6, checkpoint_every=100, keep=1)
    given = dataclasses.replace(given, profile_steps=(2, 3))
    workdir = tmp_path / "run"
    train(given, workdir)
    named = records(workdir, "quarantine.jsonl")
    assert len(named) == len({(entry["element"], entry["origin"]) for entry in named}) >= 1
    assert all("truncated" in entry["error"] for entry in named)
    last = records(workdir)[-1]
    assert last["bad_rows"] == len(named)
    assert {"towers_seconds", "gradients_seconds", "update_seconds", "data_wait_seconds", "examples_per_second"} <= set(
        last
    )
    assert {"tokens_per_second", "model_tflops_per_second", "row_efficiency/images", "host_memory_peak_gib"} <= set(
        last
    )
    assert list((workdir / "profile").rglob("*.pb*"))
    goodput = json.loads((workdir / "goodput.json").read_text())["starts"][0]
    assert goodput["last_step"] == 14 and goodput["seconds"]["saves"] > 0
    assert [path.name for path in (workdir / "checkpoints").glob("step_*")] == ["step_14"]


def test_killed_runs_end_as_undisturbed_ones_do(tmp_path):
    command = [sys.executable, kill_and_resume.__file__, "--runs", "2", "--seed", "1", "--steps", "16"]
    done = subprocess.run([*command, "--workdir", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "bit-identical parameters: 2" in done.stdout and "lost examples: 0" in done.stdout
    assert "repeated examples: 0" in done.stdout and "good runs: 2" in done.stdout
