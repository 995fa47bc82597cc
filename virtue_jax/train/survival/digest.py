"""What an array tree holds, in 32 hexadecimal digits, the same on every mesh."""

import hashlib
import json
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}
_ON_HOST = 2**22  # bytes of an array that is summed on the host


def digest(arrays: Mapping[str, jax.Array]) -> str:
    """Digest of {path: array}: paths, shapes, dtypes and every bit in its place; two arrays or values that changed
    places change it, the sharding does not.

    Sums are over whole numbers modulo 2^32, so that no order of summing matters. Small arrays are summed on the host,
    since a program for each of hundreds of shapes takes longer to compile than a run's first steps; of a large one each
    device sums what it holds, and only two numbers leave it. Finds damage and mistakes; it is no protection against
    forgery.

    Raises:
        ValueError: a dtype of more than 4 bytes.
    """
    wide = sorted(path for path, x in arrays.items() if jnp.dtype(x.dtype).itemsize not in _UNSIGNED)
    if wide:
        raise ValueError(f"digest: {wide} have values of more than 4 bytes; hold parameters in float32 or less")
    arrays = dict(sorted(arrays.items()))
    small = {path for path, x in arrays.items() if x.nbytes <= _ON_HOST and _is_whole_here(x)}
    on_device = {path: _device_sums(x) for path, x in arrays.items() if path not in small}
    sums = {path: _host_sums(x) for path, x in jax.device_get({path: arrays[path] for path in small}).items()}
    sums |= jax.device_get(on_device)
    entries = [
        (path, list(x.shape), jnp.dtype(x.dtype).name, [int(s) for s in sums[path]]) for path, x in arrays.items()
    ]
    return hashlib.blake2b(json.dumps(entries).encode(), digest_size=16).hexdigest()


def tree_digest(tree) -> str:
    """`digest` of any pytree, by its key paths."""
    return digest({jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)})


def _is_whole_here(x) -> bool:
    return not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated


@jax.jit  # a program for each shape, dtype and sharding
def _device_sums(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, _UNSIGNED[x.dtype.itemsize])
    return jnp.stack(_sums_of_bits(bits, jnp))


def _host_sums(x: np.ndarray) -> list[np.uint32]:
    return _sums_of_bits(np.asarray(x, order="C").view(_UNSIGNED[x.dtype.itemsize]), np)


def _sums_of_bits(bits, xp) -> list:
    """uint32[2]: sums modulo 2^32 of two mixtures of each value's bits with its place in the whole array; by numpy or
    jax.numpy as `xp`."""
    bits, place, stride = bits.astype(xp.uint32), xp.zeros((), xp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        steps = xp.arange(bits.shape[axis], dtype=xp.uint32) * xp.uint32(stride % 2**32)
        place = place + steps.reshape(-1, *[1] * (bits.ndim - 1 - axis))
        stride *= bits.shape[axis]
    placed = _mix(xp.atleast_1d(place) + xp.uint32(0x9E3779B9), xp)
    mixtures = (_mix(bits ^ placed, xp), _mix(bits * xp.uint32(5) + placed, xp))
    return [mixture.sum(dtype=xp.uint32) for mixture in mixtures]


def _mix(x, xp):
    """MurmurHash3's 32-bit finaliser: a bijection in which every bit of the input touches every bit of the output."""
    x = (x ^ (x >> xp.uint32(16))) * xp.uint32(0x85EBCA6B)
    x = (x ^ (x >> xp.uint32(13))) * xp.uint32(0xC2B2AE35)
    return x ^ (x >> xp.uint32(16))
