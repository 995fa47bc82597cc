"""Hints to the compiler about how activations lie on the mesh; the only thing that models know of devices."""

import math

import jax
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
