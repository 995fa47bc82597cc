"""Several processes of one run: joining, agreeing, gathering. With one process everything here is immediate."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Largest part of a parameter that is made whole on every device on its way to the first process.
_PART_BYTES = 1 << 28


def join(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Makes this process one of several; before anything asks JAX for devices.

    coordinator: "HOST:PORT" of process 0, with the number of processes and this one's number; all left out = what the
    machine says (TPU pods, SLURM, Open MPI).

    Raises:
        ValueError: only some of the three, or numbers out of range.
        RuntimeError: from JAX, where nothing says how many processes there are.
    """
    if not coordinator and processes <= 0 and process < 0:
        jax.distributed.initialize()
        return
    if not coordinator or ":" not in coordinator or not 0 <= process < processes:
        raise ValueError(
            f"coordinator {coordinator!r}, processes {processes}, process {process}: "
            "expected HOST:PORT of process 0, their number, and this one's number from 0"
        )
    jax.distributed.initialize(coordinator_address=coordinator, num_processes=processes, process_id=process)


def is_leader() -> bool:
    """Whether this process prints and writes for all."""
    return jax.process_index() == 0


def process_number() -> int:
    return jax.process_index()


def process_count() -> int:
    return jax.process_count()


def is_alone() -> bool:
    """Whether the run has one process only."""
    return jax.process_count() == 1


def barrier(name: str) -> None:
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        with jax.transfer_guard("allow"):
            multihost_utils.sync_global_devices(name)


def gather_bytes(data: bytes) -> list[bytes]:
    """Every process's `data`, by process number, on all of them."""
    if jax.process_count() == 1:
        return [data]
    with jax.transfer_guard("allow"):
        lengths = multihost_utils.process_allgather(np.int32(len(data)))
        # A power of two, so that few programs are compiled.
        room = 1 << max(int(lengths.max()) - 1, 1023).bit_length()
        padded = np.zeros(room, np.uint8)
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        gathered = multihost_utils.process_allgather(padded)
    return [row[:length].tobytes() for row, length in zip(gathered, lengths.reshape(-1), strict=True)]


class Agreement:
    """The largest of a few small numbers over all processes, known one call later, so that no process waits.

    Every process calls `offer` and then `result` once a step; `result` is what was offered a step before, the same
    on all processes. With one process it is what was just offered.
    """

    def __init__(self, count: int):
        self._none = np.zeros(count, np.int32)
        self._offered: list = []
        if jax.process_count() > 1:
            mesh = Mesh(np.asarray(jax.devices()), ("all",))
            self._split = NamedSharding(mesh, PartitionSpec("all"))
            whole = NamedSharding(mesh, PartitionSpec())
            self._largest = jax.jit(lambda x: jnp.max(x, axis=0), out_shardings=whole)

    def offer(self, *values: int) -> None:
        mine = np.asarray(values, np.int32)
        if jax.process_count() > 1:
            rows = np.tile(mine, (jax.local_device_count(), 1))
            with jax.transfer_guard("allow"):
                mine = self._largest(jax.make_array_from_process_local_data(self._split, rows))
        self._offered.append(mine)

    def result(self) -> tuple[int, ...]:
        late = jax.process_count() > 1
        ready = self._offered.pop(0) if len(self._offered) > late else self._none
        if isinstance(ready, jax.Array):
            ready = jax.device_get(ready.addressable_data(0))
        return tuple(int(x) for x in ready)


def to_leader(x: jax.Array) -> np.ndarray | None:
    """A parameter, sharded as it may be, on the first process's host; None on the others. All processes call it.

    It is made whole in parts of 256 MiB, so that no device holds all of a large one.
    """
    if x.is_fully_replicated:
        return np.asarray(jax.device_get(x.addressable_data(0))) if is_leader() else None
    if x.is_fully_addressable:
        return np.asarray(jax.device_get(x)) if is_leader() else None
    whole = NamedSharding(x.sharding.mesh, PartitionSpec())
    rows = max(1, _PART_BYTES * x.shape[0] // max(x.nbytes, 1))
    out = np.empty(x.shape, x.dtype) if is_leader() else None
    for begin in range(0, x.shape[0], rows):
        count = min(rows, x.shape[0] - begin)
        part = _rows(x, jax.device_put(np.int32(begin), whole), count, whole)
        if out is not None:
            out[begin : begin + count] = jax.device_get(part.addressable_data(0))
    return out


def _rows(x: jax.Array, begin: jax.Array, count: int, sharding: NamedSharding) -> jax.Array:
    cut = jax.jit(jax.lax.dynamic_slice_in_dim, static_argnums=(2,), out_shardings=sharding)
    return cut(x, begin, count)
