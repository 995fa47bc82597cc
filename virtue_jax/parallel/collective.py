"""What devices say to one another by hand: over one mapped mesh axis, or nothing where there is none (None)."""

import jax
import jax.numpy as jnp
from jax import lax

Axis = str | None


def gather(x: jax.Array, axis: Axis) -> jax.Array:
    """[n, ...] of every device along the axis, joined: [n * devices, ...]."""
    return x if axis is None else lax.all_gather(x, axis, tiled=True)


def total(tree, axis: Axis):
    """The sum over the devices along the axis."""
    return tree if axis is None else lax.psum(tree, axis)


def size(axis: Axis) -> int:
    """How many devices there are along the axis."""
    return 1 if axis is None else lax.axis_size(axis)


def position(axis: Axis) -> jax.Array:
    """int32[]: this device's place along the axis."""
    return jnp.zeros((), jnp.int32) if axis is None else lax.axis_index(axis)
