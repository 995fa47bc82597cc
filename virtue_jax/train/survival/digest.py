"""What an array tree holds, in 32 hexadecimal digits: the same on every mesh, computed where the arrays are."""

import hashlib
import json
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def digest(arrays: Mapping[str, jax.Array]) -> str:
    """Digest of {path: array}: paths, shapes, dtypes and every bit in its place; two arrays or values that changed
    places change it, the sharding does not.

    Each device sums over what it holds, in whole numbers modulo 2^32, so that no order of summing matters and only two
    numbers per array leave the devices. Finds damage and mistakes; it is no protection against forgery.

    Raises:
        ValueError: a dtype of more than 4 bytes.
    """
    wide = sorted(path for path, x in arrays.items() if jnp.dtype(x.dtype).itemsize not in _UNSIGNED)
    if wide:
        raise ValueError(f"digest: {wide} have values of more than 4 bytes; hold parameters in float32 or less")
    sums = jax.device_get(_all_sums(dict(arrays)))
    told = [
        (path, list(x.shape), jnp.dtype(x.dtype).name, [int(s) for s in np.asarray(sums[path])])
        for path, x in sorted(arrays.items())
    ]
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()


def tree_digest(tree) -> str:
    """`digest` of any pytree, by its key paths."""
    return digest({jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)})


@jax.jit
def _all_sums(arrays):
    return {path: _sums(x) for path, x in arrays.items()}


@jax.jit  # traced once for all arrays of one shape
def _sums(x: jax.Array) -> jax.Array:
    """uint32[2]: sums modulo 2^32 of two mixtures of each value's bits with its place in the whole array."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, _UNSIGNED[x.dtype.itemsize]).astype(jnp.uint32)
    place, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        place = place + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    placed = _mix(place + jnp.uint32(0x9E3779B9))
    mixtures = (_mix(bits ^ placed), _mix(bits * jnp.uint32(5) + placed))
    return jnp.stack([mixture.sum(dtype=jnp.uint32) for mixture in mixtures])


def _mix(x: jax.Array) -> jax.Array:
    """MurmurHash3's 32-bit finaliser: a bijection in which every bit of the input touches every bit of the output."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
