"""Lowering for a GPU on a machine without one."""

from contextlib import AbstractContextManager

import jax
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh


def absent_gpu(kind: str = "NVIDIA H100 80GB HBM3") -> AbstractContextManager:
    """From jax 0.11 on, what is lowered must know the kind of GPU; jax 0.10 takes compute capability 9.0."""
    return use_abstract_mesh(AbstractMesh((), (), abstract_device=AbstractDevice(kind, 132, "gpu")))


def lowered_for_gpus(function, *arguments) -> str:
    """StableHLO of a jitted function."""
    with absent_gpu():
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
