"""What a configuration leaves open (remat "auto", micro_batches 0, attention "auto"), filled in for the devices."""

import dataclasses
import json
from collections.abc import Callable

from jax.sharding import Mesh

from virtue_jax.config import VirtueConfig
from virtue_jax.parallel.mesh import platform_of
from virtue_jax.parallel.processes import gather_bytes
from virtue_jax.train.cost.activations import Run
from virtue_jax.train.cost.memory import choose, device_memory
from virtue_jax.train.step.config import TrainConfig
from virtue_jax.train.step.setup import TrainSetup, setup, with_attention


def fitted_setup(
    config: TrainConfig, virtue: VirtueConfig, mesh: Mesh, say: Callable[[str], None]
) -> tuple[TrainConfig, TrainSetup]:
    """`setup` of the configuration with nothing left open, and that configuration.

    The memory of a device is `config.memory_gib`, or the least that a process's devices say; where neither is known
    on CPUs, nothing is chosen, and that is said: every layer's activations are kept, in one micro-batch.

    Raises:
        ValueError: as `setup`; a step that does not fit the device however it is cut; accelerators that do not say how
            much memory they have.
    """
    config = with_attention(config, platform_of(mesh))
    run_setup = setup(config, virtue, mesh)
    rows = config.data.rows
    size = int(config.memory_gib * 2**30) or _least_memory(mesh)
    is_open = config.numerics.remat == "auto" or not all(group.micro_batches for group in rows.values())
    if not is_open:
        return config, run_setup
    if size is None:
        _without_memory(mesh.devices.flat[0].platform, say)
        return config, run_setup
    run = Run(
        virtue, config.numerics, run_setup.state.trainable, run_setup.frozen, dict(mesh.shape), config.data.pixels
    )
    choice = choose(run, rows, size)
    parts = ", ".join(f"{group.micro_batches} for {name}" for name, group in choice.groups.items())
    say(
        f"remat {choice.numerics.remat!r}, micro-batches: {parts}; an estimated {choice.estimate.total / 2**30:.2f} of "
        f"{size / 2**30:.2f} GiB per device (most of it: {choice.estimate.largest(2)})"
    )
    data = dataclasses.replace(config.data, rows=choice.groups)
    config = dataclasses.replace(config, numerics=choice.numerics, data=data)
    return config, setup(config, virtue, mesh)


def _least_memory(mesh: Mesh) -> int | None:
    """Of all processes' devices, so that every process chooses the same; all of them call it."""
    mine = json.dumps(device_memory(mesh.local_devices[0])).encode()
    known = [size for size in map(json.loads, gather_bytes(mine)) if size is not None]
    return min(known) if known else None


def _without_memory(platform: str, say: Callable[[str], None]) -> None:
    what = f"remat 'auto' and micro_batches 0 cannot be chosen: {platform} devices do not say how much memory they have"
    if platform != "cpu":
        raise ValueError(f"{what}; set config.memory_gib, or remat and every row group's micro_batches")
    say(f"{what}; everything is kept, in one micro-batch (config.memory_gib would let it be chosen)")
