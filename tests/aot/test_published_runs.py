"""Every published run compiles for the pods it is meant for, and fits: `make aot`, two minutes or so each."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.aot, pytest.mark.slow]
RUNS = [
    ("virtue_2b_scar", "v5e:8x8", ()),
    ("virtue_2b_scar:large", "v5e:16x16", ()),
    ("virtue_2b_scar:large", "v5p:8x8x8", ("--batch=65536",)),
    ("virtue_2b_scar:large", "v4:4x4x8", ("--batch=4096",)),
    ("virtue_2b_scar:large", "v5e:8x16", ("--slices=2",)),
    ("virtue_2b_mmeb", "v5e:8x8", ()),
    ("virtue_2b_mmeb:large", "v6e:16x16", ()),
    ("virtue_7b_scar", "v5p:4x4x4", ("--mesh=fsdp=1",)),
    ("virtue_7b_scar:large", "v6e:16x16", ()),
    ("virtue_7b_mmeb:large", "v5p:4x8x8", ()),
    ("virtue_7b_mmeb:large", "v5e:16x16", ()),
]


@pytest.mark.parametrize(("run", "topology", "more"), RUNS)
def test_a_published_run_compiles_and_fits(run, topology, more, tmp_path):
    out = tmp_path / "report.json"
    name, _, variant = run.partition(":")
    file = f"configs/{name}.py" + (f":{variant}" if variant else "")
    line = ["compile", "--config", file, "--topology", topology, "--effort", "low", "--json", str(out), *more]
    program = [sys.executable, "-c", "from virtue_jax.cli.main import main; main()"]
    done = subprocess.run([*program, *line], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads(out.read_text())
    assert report["fits"] and report["memory"]["headroom"] > 0
    kernels = {(kernel["stage"], kernel["name"]) for kernel in report["kernels"]}
    in_towers = {("towers", "splash_fwd"), ("towers", "window_attention")}
    assert kernels == in_towers | {("gradients", "splash_fwd"), ("gradients", "splash_dkv")}
    # What the cost model says a step executes is what the compiler made of it.
    assert report["flops"]["compiled"] == pytest.approx(report["flops"]["executed"], rel=0.05)
    if report["mesh"]["fsdp"] == 1:
        assert {line["stage"] for line in report["collectives"]} == {"gradients"}
    assert any(line["network"] == "dcn" for line in report["collectives"]) == (report["mesh"]["slices"] > 1)
