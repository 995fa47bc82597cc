"""Hints to the compiler about how activations lie on the mesh; the only thing that models know of devices."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from virtue_jax.parallel.mesh import ROWS, TENSOR

EVERY = (*ROWS, TENSOR)  # rows of work that no parameter is split for: all devices share it


def auto_axes() -> dict[str, int]:
    """Sizes of the mesh axes that the compiler still has to split work over, here: those of the surrounding mesh that
    are not mapped by hand. Empty without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    return {
        name: size
        for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        if kind == AxisType.Auto and size > 1
    }


def spec_of(shape: tuple[int, ...], axes: tuple) -> PartitionSpec:
    """The partition of an array of this shape: per dimension None, an axis or several; what is mapped by hand already,
    or does not divide the dimension, is left out."""
    present = auto_axes()

    def fitting(size: int, wanted) -> tuple[str, ...] | None:
        names = [name for name in ((wanted,) if isinstance(wanted, str) else wanted or ()) if name in present]
        while names and size % math.prod(present[name] for name in names):
            names.pop()
        return tuple(names) or None

    padded = (*axes, *[None] * (len(shape) - len(axes)))
    return PartitionSpec(*(fitting(size, wanted) for size, wanted in zip(shape, padded, strict=True)))


def constrain(x: jax.Array, *axes) -> jax.Array:
    """`x` laid out as said, one entry per leading dimension: None, an axis name, or several. Without a mesh, `x`."""
    return jax.lax.with_sharding_constraint(x, spec_of(x.shape, axes)) if auto_axes() else x


def join_rows(parts: Sequence[jax.Array]) -> jax.Array:
    """Arrays [R_i, ...], rows split over devices, as one along the leading axis; each device's rows stay on it, so that
    their order is the devices' and not the arrays'. `split_rows` undoes it."""
    shards = _row_shards([len(x) for x in parts])
    joined = jnp.concatenate([_rows(x.reshape(shards, len(x) // shards, *x.shape[1:])) for x in parts], axis=1)
    return _rows(joined.reshape(-1, *joined.shape[2:]))


def split_rows(x: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """The arrays of sizes[i] rows that `join_rows` made `x` of."""
    shards = _row_shards(sizes)
    x = _rows(x.reshape(shards, len(x) // shards, *x.shape[1:]))
    ends = [sum(sizes[: i + 1]) // shards for i in range(len(sizes) - 1)]
    return [_rows(part.reshape(-1, *part.shape[2:])) for part in jnp.split(x, ends, axis=1)]


def _row_shards(sizes: Sequence[int]) -> int:
    """Over how many devices, of those that the compiler splits rows over, all sizes divide."""
    shards = math.prod(size for name, size in auto_axes().items() if name in ROWS)
    return shards if all(size % shards == 0 for size in sizes) else 1


def _rows(x: jax.Array) -> jax.Array:
    return x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else constrain(x, ROWS)
