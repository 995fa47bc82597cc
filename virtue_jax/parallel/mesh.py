"""The device mesh, which rows a process feeds, and rows as global arrays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from virtue_jax.batch import Batch

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")
ROWS = (DATA, FSDP)  # the axes over which rows are split


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes.

    data: rows are split over it, parameters are not; -1 = the devices that the other axes leave. fsdp: rows and frozen
    weights are split over it. tensor: heads and hidden units are. slices: pods joined by a data-centre network; they
    split the data axis, so that only the sum of gradients and the gathered embeddings cross between them.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    slices: int = 1

    def __post_init__(self):
        sizes = {"fsdp": self.fsdp, "tensor": self.tensor, "slices": self.slices}
        if min(sizes.values()) < 1 or not (self.data == -1 or self.data >= 1):
            raise ValueError(f"mesh: {self}: expected sizes of at least 1, and -1 or at least 1 for data")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) over `devices`, by default all of all processes, neighbours in the network close.

    Raises:
        ValueError: sizes that do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    inner = config.fsdp * config.tensor
    data = len(devices) // inner if config.data == -1 else config.data
    if data * inner != len(devices) or data % config.slices:
        raise ValueError(
            f"mesh data={config.data}, fsdp={config.fsdp}, tensor={config.tensor}, slices={config.slices} does not "
            f"fit {len(devices)} devices: data * fsdp * tensor must be their number, and slices divide data"
        )
    shape = (data // config.slices, config.fsdp, config.tensor)
    if config.slices > 1:
        by_process = not hasattr(devices[0], "slice_index")
        placed = mesh_utils.create_hybrid_device_mesh(
            shape, (config.slices, 1, 1), devices, process_is_granule=by_process, allow_split_physical_axes=True
        )
    else:
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def platform_of(mesh: Mesh) -> str:
    """What the mesh's devices are, which need not be this machine's: "tpu", "cuda", "rocm" or "cpu"."""
    device = mesh.devices.flat[0]
    if device.platform != "gpu":
        return device.platform
    return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"


def rows(mesh: Mesh) -> NamedSharding:
    """Leading axis split over the row axes."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def row_shards(mesh: Mesh) -> int:
    """Into how many parts the rows are split."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def local_streams(mesh: Mesh, streams: int) -> tuple[int, ...]:
    """Which of the data's packing streams hold rows of this process's devices, ascending.

    Stream s of S holds the rows from s / S to (s + 1) / S of every row group. Two processes may hold the same stream:
    where the tensor axis spans them, or where there are fewer streams than processes.
    """
    shards = row_shards(mesh)
    here = {
        shard
        for shard, devices in enumerate(mesh.devices.reshape(shards, -1))
        if any(device.process_index == jax.process_index() for device in devices)
    }
    first_last = ((shard * streams // shards, -(-(shard + 1) * streams // shards)) for shard in here)
    return tuple(sorted({stream for first, last in first_last for stream in range(first, last)}))


def row_parts(mesh: Mesh) -> int:
    """How many processes hold rows of their own: those that a tensor axis puts on the same rows count once."""
    held: dict[int, set[int]] = {}
    for shard, devices in enumerate(mesh.devices.reshape(row_shards(mesh), -1)):
        for device in devices:
            held.setdefault(device.process_index, set()).add(shard)
    return len({frozenset(shards) for shards in held.values()})


def put_rows(groups: tuple[Batch, ...], mesh: Mesh, streams: Sequence[int] = (0,), of: int = 1) -> tuple[Batch, ...]:
    """The rows of some streams (ascending; at least `local_streams(mesh, of)`) as part of global arrays.

    Raises:
        ValueError: a row count that the mesh does not divide.
    """
    shards = row_shards(mesh)
    for group in groups:
        total = len(group.tokens) // len(streams) * of
        if total % shards:
            raise ValueError(f"{total} rows do not divide over {shards} devices; choose row counts divisible by it")
    sharding, place = rows(mesh), {stream: i for i, stream in enumerate(streams)}

    def put(local: np.ndarray) -> jax.Array:
        part = len(local) // len(streams)  # rows of one stream

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            first, last, _ = index[0].indices(part * of)
            start = place[first // part] * part + first % part
            return local[start : start + last - first]

        return jax.make_array_from_callback((part * of, *local.shape[1:]), sharding, shard)

    return jax.tree.map(put, groups)
