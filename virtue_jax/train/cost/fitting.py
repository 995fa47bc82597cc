"""What a configuration leaves open (remat "auto", micro_batches 0), filled in for the devices that are there."""

import dataclasses
from collections.abc import Callable

from jax.sharding import Mesh

from virtue_jax.config import VirtueConfig
from virtue_jax.train.config import TrainConfig
from virtue_jax.train.cost.activations import Run
from virtue_jax.train.cost.memory import choose, device_memory
from virtue_jax.train.setup import TrainSetup, setup


def fitted_setup(
    config: TrainConfig, virtue: VirtueConfig, mesh: Mesh, say: Callable[[str], None]
) -> tuple[TrainConfig, TrainSetup]:
    """`setup` of the configuration with nothing left open, and that configuration.

    The memory of a device is `config.memory_gib`, or what the device says; where neither is known (CPUs), nothing is
    chosen: every layer's activations are kept, in one micro-batch.

    Raises:
        ValueError: as `setup`; a step that does not fit the device however it is cut.
    """
    made = setup(config, virtue, mesh)
    rows = config.data.rows
    size = int(config.memory_gib * 2**30) or device_memory(mesh.local_devices[0])
    is_open = config.numerics.remat == "auto" or not all(group.micro_batches for group in rows.values())
    if size is None or not is_open:
        return config, made
    run = Run(virtue, config.numerics, made.state.trainable, made.frozen, dict(mesh.shape), config.data.pixels)
    choice = choose(run, rows, size)
    parts = ", ".join(f"{group.micro_batches} for {name}" for name, group in choice.groups.items())
    say(
        f"remat {choice.numerics.remat!r}, micro-batches: {parts}; an estimated {choice.estimate.total / 2**30:.2f} of "
        f"{size / 2**30:.2f} GiB per device (most of it: {choice.estimate.largest(2)})"
    )
    data = dataclasses.replace(config.data, rows=choice.groups)
    config = dataclasses.replace(config, numerics=choice.numerics, data=data)
    return config, setup(config, virtue, mesh)
