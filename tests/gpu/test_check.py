"""The GPU check runs where there is no GPU, and its verdict can be no."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from full_size.compare import STAGES
from gpu.check import markdown, passes
from gpu.parity import judged
from gpu.training import summary, top_kernels

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_tiny_check_trains_and_times_and_writes_its_tables(tmp_path):
    command = [sys.executable, "-m", "gpu.check", "--workdir", tmp_path, "--tiny", "--only", "attention,training"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr[-3000:]  # 1 = the loss of so few steps did not fall
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert report["training"]["steps"] == 8 and report["training"]["seconds_per_step"] > 0
    assert 0 < sum(kernel["share"] for kernel in report["training"]["top_kernels"]) <= 1
    times = report["attention"]["cases"]["tiny"]
    assert times["xla"]["both_ms"] > 0 and times["triton"]["both_ms"] > 0 and "cuDNN" in times["cudnn"]["failed"]
    table = (tmp_path / "gpu_check.md").read_text()
    assert "these figures mean nothing" in table and "| tiny | triton |" in table and "| seconds_per_step |" in table


@pytest.fixture
def outputs() -> dict:
    """What parity judges: float32 all but equal, bfloat16 rounded on both sides."""
    rng = np.random.default_rng(0)
    exact = {stage: rng.standard_normal(100).astype(np.float32) for stage in STAGES}
    noise = {"jax_float32": 1e-6, "torch_float32": 0.0, "jax_bfloat16": 1e-2, "torch_bfloat16": 1e-2}
    return {
        name: {stage: x + size * rng.uniform(0.5, 1, x.shape).astype(np.float32) for stage, x in exact.items()}
        for name, size in noise.items()
    }


def test_parity_is_judged_in_each_dtype_by_every_stage(outputs):
    found = judged(outputs)
    assert found["float32_agrees"] and found["bfloat16_agrees"]
    outputs["jax_bfloat16"]["vision_tokens"] = outputs["torch_float32"]["vision_tokens"] + 0.1
    assert judged(outputs)["float32_agrees"] and not judged(outputs)["bfloat16_agrees"]
    outputs["jax_float32"]["fused_map"] = outputs["torch_float32"]["fused_map"] + 0.01
    report = {"size": "2b", "tiny": False, "versions": {}, "parity": judged(outputs)}
    assert not report["parity"]["float32_agrees"] and not passes(report)
    assert "| fused_map | " in markdown(report)


def test_a_loss_that_does_not_fall_fails_and_unknown_figures_are_said_to_be_unknown():
    steps = [{"loss": loss, "seconds_per_step": 1.0, "mfu": None} for loss in (3.0, 2.0, 2.5, 3.5)]
    found = summary(steps)
    assert (found["loss_first"], found["loss_last"]) == (2.5, 3.0) and found["mfu"] is None
    report = {"size": "2b", "tiny": False, "versions": {}, "training": found | {"top_kernels": []}}
    assert not passes(report) and "| mfu | not known |" in markdown(report)


def test_a_run_without_a_trace_is_told(tmp_path):
    with pytest.raises(SystemExit, match="no profiler trace"):
        top_kernels(tmp_path)
