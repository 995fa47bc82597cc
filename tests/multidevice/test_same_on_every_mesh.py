"""The same seed trains the same model on every mesh, in micro-batches or not; one process of 8 virtual devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ONE, ONE_SYMMETRIC = "one device", "one device, symmetric"
OTHERS = ["8x1x1", "8x1x1 in micro-batches", "2x4x1", "2x2x2", "1x8x1"]


@pytest.fixture(scope="module")
def told() -> dict:
    # Compiled in a hurry: what is compared is the program, not its speed.
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, HERE / "meshes.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def pairs(told: dict, name: str, reference: str):
    for mine, other in zip(told[name]["metrics"], told[reference]["metrics"], strict=True):
        for key in other:
            yield key, mine[key], other[key]


@pytest.mark.parametrize(
    ("name", "reference"),
    [*((name, ONE) for name in OTHERS), ("2x2x2, symmetric, in micro-batches", ONE_SYMMETRIC)],
)
def test_loss_gradients_and_update_are_those_of_one_device(told, name, reference):
    for key, mine, other in pairs(told, name, reference):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6, err_msg=f"{name}: {key}")
    moved, expected = told[name]["moved"], told[reference]["moved"]
    assert moved.keys() == expected.keys()
    for path, change in expected.items():
        # AdamW's first steps are sign-like: where a gradient is all but zero, rounding decides.
        differs = np.abs(np.subtract(moved[path], change)) > 2e-5
        assert differs.mean() < 0.03, (name, path)
        assert np.abs(change).max() > 5e-4, path


def test_dropout_and_the_loss_are_at_work(told):
    losses = [step["loss"] for step in told[ONE]["metrics"]]
    assert losses[0] != losses[1]
    assert all(step["queries"] > 30 and step["unmatched"] == 0 and step["finite"] for step in told[ONE]["metrics"])
    assert told[ONE]["metrics"][0]["loss"] != told[ONE_SYMMETRIC]["metrics"][0]["loss"]


def test_weights_are_split_as_the_table_says(told):
    assert told["8x1x1"]["split"] == []
    for path in ("text.layers.self_attn.q_proj.kernel", "text.layers.mlp.down_proj.kernel", "vision.merger.fc1.kernel"):
        assert path in told["1x8x1"]["split"] and path in told["2x2x2"]["split"]
    assert not any(path.startswith("sam2.") or "lora" in path for path in told["2x2x2"]["split"])


def test_data_parallel_devices_gather_the_slots_once_and_sum_once(told):
    collectives = told["8x1x1"]["collectives"]
    # Towers of a device's own rows need nobody.
    assert collectives["towers"] == {}
    # Slots: embeddings, side, content, positives, valid. Sums: the gradients and a few scalars, combined or not; and
    # the embeddings' gradient, back to where they came from.
    gradients = collectives["gradients"]
    assert set(gradients) <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert gradients["all-gather"] <= 5
    assert gradients.get("reduce-scatter", 0) <= 1
    assert gradients["all-reduce"] <= 12


def test_a_device_holds_its_own_rows_of_the_logits(told):
    assert told["8x1x1"]["collectives"]["own logits"]
    assert not told["8x1x1"]["collectives"]["whole logits"]
