"""The device mesh and the two shardings that training uses: rows over `data`, everything else replicated."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from virtue_jax.batch import Batch

DATA = "data"


def data_mesh(devices=None) -> Mesh:
    """A one-axis mesh over all devices of all processes (or the given ones)."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (DATA,))


def rows(mesh: Mesh) -> NamedSharding:
    """Leading axis split over the data axis."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def put_rows(groups: tuple[Batch, ...], mesh: Mesh) -> tuple[Batch, ...]:
    """This process's rows of each row group as part of global arrays.

    Raises:
        ValueError: a row count that the mesh's share of this process does not divide.
    """
    sharding = rows(mesh)
    local = len(mesh.local_devices)
    for group in groups:
        if group.tokens.shape[0] % local:
            raise ValueError(
                f"{group.tokens.shape[0]} rows in this process do not divide over its {local} devices; "
                f"choose a batch size divisible by {mesh.size}"
            )
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), groups)
