"""Run in a process of 8 virtual devices: the tiny run of two steps on every mesh, as JSON on the last line of stdout.

python tests/multidevice/meshes.py
"""

import json
import re
import sys
from collections import Counter

import jax
import numpy as np
from flax import nnx
from tiny_step import geometry, row_groups, run_config

from virtue_jax.config import Numerics
from virtue_jax.models.parameters import parameters
from virtue_jax.models.virtue import Virtue
from virtue_jax.parallel.mesh import MeshConfig, make_mesh, put_rows
from virtue_jax.train.step.loss import LossConfig
from virtue_jax.train.step.setup import TrainSetup, setup

STEPS = 2
# name -> (data, fsdp, tensor), micro-batches, loss, remat
RUNS = {
    "one device": ((1, 1, 1), 1, LossConfig(), "none"),
    "8x1x1": ((8, 1, 1), 1, LossConfig(), "none"),
    "8x1x1 in micro-batches": ((8, 1, 1), 2, LossConfig(), "layer"),
    "2x4x1": ((2, 4, 1), 1, LossConfig(), "none"),
    "2x2x2": ((2, 2, 2), 1, LossConfig(), "none"),
    "1x8x1": ((1, 8, 1), 1, LossConfig(), "none"),
    "one device, symmetric": ((1, 1, 1), 1, LossConfig(symmetric=True, learn_temperature=True), "none"),
    "2x2x2, symmetric, in micro-batches": (
        (2, 2, 2),
        2,
        LossConfig(symmetric=True, learn_temperature=True),
        "dots",
    ),
}
COLLECTIVE = re.compile(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def starting_weights(virtue) -> dict[str, np.ndarray]:
    made = jax.jit(lambda: parameters(Virtue(virtue, numerics=Numerics(), rngs=nnx.Rngs(0))))()
    rng = np.random.default_rng(5)
    # A fresh adapter's B is zero, which would hide half of its gradients.
    return {
        path: np.asarray(x) + (0.02 * rng.standard_normal(x.shape).astype(np.float32) if "lora_b" in path else 0)
        for path, x in made.items()
    }


def train(name: str, weights: dict[str, np.ndarray]) -> dict:
    sizes, micro, loss, remat = RUNS[name]
    virtue = geometry()
    config = run_config(micro=micro, loss=loss, numerics=Numerics(remat=remat), mesh=MeshConfig(*sizes))
    mesh = make_mesh(config.mesh, jax.devices()[: int(np.prod(sizes))])
    run = setup(config, virtue, mesh)
    state = run.init(
        {p: jax.device_put(weights[p], x.sharding) for p, x in run.state.trainable.items() if p in weights}
    )
    frozen = {path: jax.device_put(weights[path], x.sharding) for path, x in run.frozen.items()}
    told = []
    for step in range(STEPS):
        groups = put_rows(row_groups(config, virtue, step), mesh)
        if not told and name == "8x1x1":
            collectives = counted(run, state, frozen, groups)
        state, metrics = run.step(state, frozen, groups)
        told.append({key: float(value) for key, value in metrics.items()})
    after = {p: (np.asarray(x) - weights.get(p, 0)).ravel().tolist()[:50] for p, x in state.trainable.items()}
    split = sorted(path for path, x in frozen.items() if not x.sharding.is_fully_replicated)
    found = {"metrics": told, "moved": after, "split": split}
    return found | ({"collectives": collectives} if name == "8x1x1" else {})


def counted(run: TrainSetup, state, frozen, groups) -> dict:
    """What the compiled gradient stage says between devices, by kind, and inside of loops."""
    outputs = run.towers(frozen, groups)
    inputs = (state.trainable, state.step, frozen, run.embed_inputs(groups), outputs)
    text = run.gradients.lower(*inputs).compile().as_text()
    towers = run.towers.lower(frozen, groups).compile().as_text()
    slots = sum(batch.pool.shape[0] * batch.pool.shape[1] for batch in groups)
    return {
        "gradients": Counter(COLLECTIVE.findall(text)),
        "towers": Counter(COLLECTIVE.findall(towers)),
        "whole logits": f"f32[{slots},{slots}]" in text,
        "own logits": f"f32[{slots // 8},{slots}]" in text,
    }


if __name__ == "__main__":
    assert jax.device_count() == 8, "set XLA_FLAGS=--xla_force_host_platform_device_count=8"
    jax.config.update("jax_default_matmul_precision", "highest")
    start = starting_weights(geometry())
    print(json.dumps({name: train(name, start) for name in RUNS}), file=sys.stdout)
