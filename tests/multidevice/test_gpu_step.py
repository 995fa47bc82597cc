"""A run file's step lowers for one GPU and for eight, with the GPU's attention kernels in it and not the fallback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        jax.__version_info__ >= (0, 11),
        reason="from jax 0.11 on, kernels for an absent GPU are lowered on abstract devices only",
    ),
]
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def lowered() -> dict:
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, HERE / "gpu_step.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("mesh", ["one GPU", "8x1x1", "2x2x2"])
def test_kernels_are_in_the_towers_and_forwards_and_backwards_in_the_gradients(lowered, mesh):
    assert lowered[mesh]["attention"] == "triton", "what 'auto' is on a mesh of GPUs"
    stages = lowered[mesh]["stages"]
    # SAM-2's global block and Qwen's blocks, which are scanned.
    assert stages["towers"]["kernels"] == {"attention_forward": 2}
    # Language model: two row groups in one run, its layers scanned; the backward pass runs each layer forward again.
    each = {"attention_forward": 2, "attention_query_gradient": 1, "attention_key_gradients": 1}
    assert stages["gradients"]["kernels"] == each
    assert stages["update"]["kernels"] == {}


def test_a_device_s_kernel_works_on_its_own_rows_and_heads(lowered):
    # 32 rows of 32 slots (two groups share a run), 8 query heads of size 8, filled up to 16.
    assert "32x32x8x16xbf16" in lowered["one GPU"]["outputs"]
    assert "4x32x8x16xbf16" in lowered["8x1x1"]["outputs"]
    assert "8x32x4x16xbf16" in lowered["2x2x2"]["outputs"]
