"""The benchmark runs, and its two programs agree before they are timed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parity
def test_the_quick_benchmark_finds_agreement_and_tells_ratios(tmp_path):
    script, report = Path(__file__).with_name("train_step.py"), tmp_path / "report.json"
    command = [sys.executable, script, "--quick", "--repeats", "2", "--workdir", tmp_path / "work", "--report", report]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(report.read_text())
    assert found["agreement"]["worst"] < 1e-4
    assert found["agreement"]["tensors"] == 36
    assert len(found["turns"]) == 2
    ours = found["pytorch_over_ours"]["ours"]
    assert ours["wall_s"]["least"] <= ours["wall_s"]["median"] <= ours["wall_s"]["most"]
    assert "| PyTorch loop / ours |" in done.stdout
