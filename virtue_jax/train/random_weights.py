"""Values of untrained parameters, computed on the host: no program is compiled for them.

A value is a function of (seed, path, place in the whole array): the same on every mesh, in every process and after
every restart, and each device's part is made without the rest.
"""

import functools
import hashlib
import math
from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx
from scipy.special import ndtr, ndtri

from virtue_jax.config import Numerics, VirtueConfig
from virtue_jax.models.initial import CUT, Initial
from virtue_jax.models.parameters import abstract_virtue, dotted

_AT_ONCE = 2**20  # values; what is computed in between takes 8 bytes for each


def random_weights(
    virtue: VirtueConfig, numerics: Numerics, seed: int, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Untrained values of the parameters `wanted` ({path: shape, dtype and sharding}) of a model, in their places.

    Raises:
        KeyError: a path that the model has not.
    """
    known = initials(virtue, numerics)
    return {path: _array(known[path], known[path].source(path), seed, x) for path, x in wanted.items()}


@functools.lru_cache(maxsize=1)  # trainable and frozen parameters are asked for one after the other
def initials(virtue: VirtueConfig, numerics: Numerics) -> dict[str, Initial]:
    """{path: what an untrained parameter holds}; an adapter's depend on its kernel and are None."""
    state = nnx.to_flat_state(nnx.state(abstract_virtue(virtue, numerics)))
    return {dotted(path): leaf.get_metadata("initial") for path, leaf in state}


def _array(initial: Initial, source: str, seed: int, x: jax.ShapeDtypeStruct) -> jax.Array:
    key = np.frombuffer(hashlib.blake2b(f"{seed} {source}".encode(), digest_size=8).digest(), np.uint64)[0]

    def part(index):
        return values(initial, key, x.shape, index).astype(x.dtype)

    return jax.make_array_from_callback(x.shape, x.sharding, part)


def values(initial: Initial, key: np.uint64, shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
    """float32: the part `index` of an array of `shape` with distribution `initial`; a function of the key and of each
    value's place in the array."""
    ranges = [range(*part.indices(size)) for part, size in zip(index, shape, strict=True)]
    part_shape = tuple(map(len, ranges))
    if initial.distribution == "constant":
        return np.full(part_shape, initial.scale, np.float32)
    offsets, stride = np.zeros((1,), np.uint64), 1  # of a row: all axes but the first
    for axis in reversed(range(1, len(shape))):
        steps = np.asarray(ranges[axis], np.uint64) * np.uint64(stride)
        offsets = (steps[:, None] + offsets).reshape(-1)
        stride *= shape[axis]
    firsts = np.asarray(ranges[0] if shape else [0], np.uint64) * np.uint64(stride)
    out = np.empty((len(firsts), len(offsets)), np.float32)
    rows = max(1, _AT_ONCE // max(1, len(offsets)))
    for row in range(0, len(firsts), rows):
        places = firsts[row : row + rows, None] + offsets
        out[row : row + rows] = initial.scale * _standard(initial.distribution, key, places)
    return out.reshape(part_shape)


def _standard(distribution: str, key: np.uint64, places: np.ndarray) -> np.ndarray:
    uniform = _uniform(key, places)
    if distribution == "truncated_normal":
        least, most = ndtr(-CUT), ndtr(CUT)
        uniform = least + uniform * (most - least)
    return ndtri(uniform)


def _uniform(key: np.uint64, places: np.ndarray) -> np.ndarray:
    """float64 in (0, 1): numbers `places` of the stream of SplitMix64 (Steele, Lea and Flood 2014) from `key`."""
    x = places + np.uint64(1)
    x *= np.uint64(0x9E3779B97F4A7C15)
    x += key
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return ((x >> np.uint64(12)) + 0.5) * math.ldexp(1, -52)
