"""Embedding on all devices gives what one device gives; one process of 8 virtual devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_rows_are_split_over_all_devices_and_embeddings_stay(tiny_model_dir):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, Path(__file__).parent / "embed_rows.py", tiny_model_dir()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["devices"] == {"one": 1, "all": 8}
    assert told["apart"] < 1e-5 and told["looked apart"] < 1e-5
    assert told["norm"] > 0.9999
