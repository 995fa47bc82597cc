"""The published runs set up on meshes of their size, of virtual devices: rows and parameters divide, stages trace."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, math, sys
import jax
sys.path[:0] = [{root!r} + "/tests", {root!r} + "/tests/configs"]
from test_configs import RUNS, published
from virtue_jax.published_models import published_geometry
from virtue_jax.parallel.mesh import make_mesh
from virtue_jax.train.step import setup as setup_module

setup_module.platform_of = lambda mesh: "tpu"  # devices are stood in for by this machine's
found = {{}}
for size, stage, variant in RUNS:
    config = published(size, stage, variant)
    mesh = make_mesh(config.mesh, jax.devices()[: 256 if variant else 64])
    run = setup_module.setup(config, published_geometry(size), mesh)
    assert run.model.text.numerics.attention == "splash"
    rows = [batch.tokens.sharding.shard_shape(batch.tokens.shape)[0] for batch in run.groups]
    shards = [(x.dtype.itemsize, x.sharding.shard_shape(x.shape)) for x in run.frozen.values()]
    outputs = jax.eval_shape(run.towers, run.frozen, run.groups)
    inputs = run.embed_inputs(run.groups)
    trained = run.state.trainable
    gradients, metrics = jax.eval_shape(run.gradients, trained, run.state.step, run.frozen, inputs, outputs)
    state, more = jax.eval_shape(run.update, run.state, gradients, metrics["loss"])
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), run.state)
    assert metrics["loss"].shape == () and more["finite"].shape == ()
    bytes_each = sum(itemsize * math.prod(shape) for itemsize, shape in shards)
    found[size + stage + variant] = [dict(mesh.shape), rows, bytes_each]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_published_runs_fit_their_meshes():
    flags = "--xla_force_host_platform_device_count=256"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(root=str(ROOT))],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 8
    for name, (mesh, rows, weights) in found.items():
        devices, fsdp = (256 if name.endswith("large") else 64), (4 if name.startswith("7b") else 1)
        assert mesh == {"data": devices // fsdp, "fsdp": fsdp, "tensor": 1}
        assert min(rows) >= 1
        assert weights < (4.6 if fsdp == 1 else 5.5) * 2**30, "frozen weights of one device, of 16 GiB"
