"""Run in a process of 8 virtual devices: the stages of a training step lowered for GPUs that are not there, as JSON.

python tests/multidevice/gpu_step.py

Devices are stood in for by this machine's; which attention is lowered follows from what the mesh is said to be.
"""

import json
import re
from collections import Counter

import jax
import numpy as np
from tiny_step import geometry, run_config

from virtue_jax.parallel.mesh import MeshConfig, make_mesh
from virtue_jax.train.step import setup as setup_module
from virtue_jax.train.step.config import RunNumerics

MESHES = {"one GPU": (1, 1, 1), "8x1x1": (8, 1, 1), "2x2x2": (2, 2, 2)}
KERNEL = re.compile(r'name = "(attention_\w+)".* -> \(?tensor<(\w+)>')


def lowered(sizes: tuple[int, ...], platform: str = "cuda") -> dict:
    config = run_config(numerics=RunNumerics("bfloat16", "bfloat16", remat="layer"), mesh=MeshConfig(*sizes))
    mesh = make_mesh(config.mesh, jax.devices()[: int(np.prod(sizes))])
    run = setup_module.setup(config, geometry(), mesh)
    outputs = jax.eval_shape(run.towers, run.frozen, run.groups)
    inputs = run.state.trainable, run.state.step, run.frozen, run.embed_inputs(run.groups), outputs
    gradients, metrics = jax.eval_shape(run.gradients, *inputs)
    stages = {
        "towers": (run.towers, (run.frozen, run.groups)),
        "gradients": (run.gradients, inputs),
        "update": (run.update, (run.state, gradients, metrics["loss"])),
    }
    texts = {
        name: stage.trace(*given).lower(lowering_platforms=(platform,)).as_text()
        for name, (stage, given) in stages.items()
    }
    found = {name: KERNEL.findall(text) for name, text in texts.items()}
    return {
        "attention": run.model.text.numerics.attention,
        "stages": {name: {"kernels": Counter(kernel for kernel, _ in each)} for name, each in found.items()},
        "outputs": sorted({output for each in found.values() for _, output in each}),
    }


if __name__ == "__main__":
    assert jax.device_count() == 8, "set XLA_FLAGS=--xla_force_host_platform_device_count=8"
    setup_module.platform_of = lambda mesh: "cuda"
    print(json.dumps({name: lowered(sizes) for name, sizes in MESHES.items()}))
