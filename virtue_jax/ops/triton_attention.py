"""Attention on NVIDIA GPUs: a Pallas kernel in Triton, forwards and backwards (FlashAttention-2, arXiv 2307.08691).

Why a kernel of our own. cuDNN's attention, through `jax.nn.dot_product_attention`, knows lengths but no segments:
packed rows would need a bias of L x S values; it takes no float32, and cannot be lowered where there is no GPU. The
kernel that jax ships as an example has segments, but wants key heads repeated, takes one array of segments for queries
and keys, computes head size 80 as 128, float32 as TF32, and visits every block. Here

- blocks of keys that hold no segment of a block of queries are not visited, so that a packed row costs the squares of
  its examples, not its own, and padding next to nothing;
- a head size is worked on as powers of two (80 = 64 + 16), without filling up to the next one;
- a group of query heads reads its key head in place;
- lengths that are no multiple of a block are filled with padding, at its cost.

Products are in the inputs' dtype with float32 sums; those of float32 inputs are float32 throughout, never TF32.

Block sizes: Triton's compiler for sm_80 and sm_90 (no GPU) turned every kernel of these tables into machine code for
the published heads (56, 80, 128) and 256, of at most 131,584 bytes of shared memory, where an A100 gives a block
166,912 and an H100 232,448; in 16 bits registers spill at most 132 bytes. Their speed has not been measured.

Letters: as in `ops/attention.py`; G = H / K query heads per key head.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from virtue_jax.ops.block_visits import block_visits
from virtue_jax.ops.per_device import on_each_device
from virtue_jax.ops.triton_kernels import forward_kernel, key_gradients_kernel, query_gradient_kernel

LEAST_SIZE = 16  # of a product's dimensions in Triton
LARGEST_HEAD = 256


class Tiles(NamedTuple):
    """Of one kernel: queries and keys of a block, warps that share it, blocks in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


class Tuning(NamedTuple):
    """Of the forward pass, of the keys' and values' gradients, of the queries' gradient."""

    forward: Tiles
    keys: Tiles
    queries: Tiles


# For all but float32 inputs, by the largest head size that they serve.
TUNED = {
    64: Tuning(Tiles(128, 64, 4, 3), Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 2)),
    128: Tuning(Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 2)),
    LARGEST_HEAD: Tuning(Tiles(64, 32, 4, 2), Tiles(32, 32, 4, 1), Tiles(32, 32, 4, 1)),
}
TUNED_FLOAT32 = {
    128: Tuning(Tiles(64, 32, 4, 2), Tiles(32, 32, 4, 1), Tiles(32, 32, 4, 1)),
    LARGEST_HEAD: Tuning(Tiles(32, 16, 4, 1), Tiles(16, 16, 4, 1), Tiles(16, 16, 4, 1)),
}


def tuning(head_size: int, dtype) -> Tuning:
    """The tiles of the least tuned head size that holds `head_size`, for numbers of `dtype`.

    Raises:
        ValueError: a head size that does not fit a GPU's shared memory.
    """
    table = TUNED_FLOAT32 if jnp.dtype(dtype).itemsize > 2 else TUNED
    fitting = [size for size in table if head_size <= size]
    if not fitting:
        raise ValueError(
            f"attention backend 'triton': head size {head_size} is larger than {LARGEST_HEAD}; "
            "set numerics.attention='xla'"
        )
    return table[min(fitting)]


def triton_attention(q, k, v, scale, causal, q_segments, kv_segments, *, interpret=False):
    """`ops.attention.attention` on NVIDIA GPUs; segments are at least 0. interpret: on a CPU, for tests.

    No gradient comes from padded queries, and none reaches padded keys.

    Raises:
        ValueError: integer inputs or float64, a head size over 256; rows or heads that the mesh does not divide.
    """
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"attention backend 'triton': q {q.dtype}, k {k.dtype}, v {v.dtype}: expected the same of float32, "
            "bfloat16 and float16; set numerics.attention='xla'"
        )
    kernel = functools.partial(_padded, scale=scale, causal=causal, interpret=interpret)
    return on_each_device(kernel, q, k, v, q_segments, kv_segments, backend="triton")


def _padded(q, k, v, q_segments, kv_segments, *, scale, causal, interpret):
    """Lengths and head size filled up to what blocks need."""
    (B, L, _, D), S = q.shape, k.shape[1]
    tuned = tuning(D, q.dtype)
    to_L, to_S = (_multiple(tuned, length) for length in (L, S))
    if q_segments is None and (L % to_L or S % to_S):
        q_segments, kv_segments = jnp.ones((B, L), jnp.int32), jnp.ones((B, S), jnp.int32)
    q = _fill(_fill(q, 1, to_L), 3, LEAST_SIZE)
    k, v = (_fill(_fill(x, 1, to_S), 3, LEAST_SIZE) for x in (k, v))
    segments = None
    if q_segments is not None:
        queries, keys = _fill(q_segments, 1, to_L), _fill(kv_segments, 1, to_S)
        segments = jnp.where(queries == 0, -1, queries).astype(jnp.int32), keys.astype(jnp.int32)
    return _attention(q, k, v, segments, scale, causal, interpret)[:, :L, :, :D]


def _multiple(tuned: Tuning, length: int) -> int:
    """What a length is filled up to a multiple of: the largest block, or all of a shorter length."""
    return min(max(max(tiles.queries, tiles.keys) for tiles in tuned), max(LEAST_SIZE, pl.next_power_of_2(length)))


def _fill(x, axis: int, multiple: int):
    pad = -x.shape[axis] % multiple
    return jnp.pad(x, [(0, pad if a == axis else 0) for a in range(x.ndim)]) if pad else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attention(q, k, v, segments, scale, causal, interpret):
    return _forward(q, k, v, segments, scale, causal, interpret)[0]


def _forward(q, k, v, segments, scale, causal, interpret):
    (B, L, H, D), (S, K) = q.shape, k.shape[1:3]
    tiles = _within(tuning(D, q.dtype).forward, L, S)
    specs = _Specs(L, S, H // K, D)
    out, lse = pl.pallas_call(
        functools.partial(forward_kernel, tiles=tiles, scale=scale, causal=causal),
        grid=(L // tiles.queries, H, B),
        in_specs=[
            specs.queries(tiles.queries),
            specs.keys(None),
            specs.keys(None),
            *specs.segments(segments, L // tiles.queries),
        ],
        out_specs=[specs.queries(tiles.queries), specs.per_query(tiles.queries)],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((B, H, L), jnp.float32)],
        compiler_params=triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        interpret=interpret,
        name="attention_forward",
    )(q, k, v, *_visits(segments, tiles, causal))
    return out, (q, k, v, segments, out, lse)


def _backward(scale, causal, interpret, residuals, d_out):
    q, k, v, segments, out, lse = residuals
    delta = jnp.einsum("BLHD,BLHD->BHL", out.astype(jnp.float32), d_out.astype(jnp.float32))
    operands = q, k, v, d_out, lse, delta, segments, scale, causal, interpret
    d_q = _query_gradient(*operands)
    d_k, d_v = _key_gradients(*operands)
    return d_q, d_k, d_v, None


_attention.defvjp(_forward, _backward)


def _query_gradient(q, k, v, d_out, lse, delta, segments, scale, causal, interpret):
    (B, L, H, D), (S, K) = q.shape, k.shape[1:3]
    tiles = _within(tuning(D, q.dtype).queries, L, S)
    specs, block = _Specs(L, S, H // K, D), tiles.queries
    return pl.pallas_call(
        functools.partial(query_gradient_kernel, tiles=tiles, scale=scale, causal=causal),
        grid=(L // block, H, B),
        in_specs=[
            specs.queries(block),
            specs.keys(None),
            specs.keys(None),
            specs.queries(block),
            specs.per_query(block),
            specs.per_query(block),
            *specs.segments(segments, L // block),
        ],
        out_specs=specs.queries(block),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        interpret=interpret,
        name="attention_query_gradient",
    )(q, k, v, d_out, lse, delta, *_visits(segments, tiles, causal))


def _key_gradients(q, k, v, d_out, lse, delta, segments, scale, causal, interpret):
    """Each query head's share; the shares of a group are summed in float32."""
    (B, L, H, D), (S, K) = q.shape, k.shape[1:3]
    G = H // K
    tiles = _within(tuning(D, q.dtype).keys, L, S)
    specs, block = _Specs(L, S, G, D), tiles.keys
    share = jax.ShapeDtypeStruct((B, S, H, D), jnp.float32 if G > 1 else k.dtype)
    gradients = pl.pallas_call(
        functools.partial(key_gradients_kernel, tiles=tiles, scale=scale, causal=causal),
        grid=(S // block, H, B),
        in_specs=[
            specs.queries(None),
            specs.keys(block),
            specs.keys(block),
            specs.queries(None),
            specs.per_query(None),
            specs.per_query(None),
            *specs.segments(segments, S // block),
        ],
        out_specs=[specs.key_shares(block)] * 2,
        out_shape=[share, share],
        compiler_params=triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        interpret=interpret,
        name="attention_key_gradients",
    )(q, k, v, d_out, lse, delta, *_visits(segments, tiles, causal, of_keys=True))
    if G == 1:
        return gradients
    return [x.reshape(B, S, K, G, D).sum(3).astype(k.dtype) for x in gradients]


class _Specs(NamedTuple):
    """Blocks of arrays for a grid (blocks, query heads H, rows B); a block of None is the whole length."""

    L: int
    S: int
    G: int
    D: int

    def queries(self, block: int | None):
        """Of [B, L, H, D]."""
        return pl.BlockSpec((None, block or self.L, None, self.D), lambda i, h, b: (b, i if block else 0, h, 0))

    def keys(self, block: int | None):
        """Of [B, S, K, D]: the key head that the query head reads."""
        return pl.BlockSpec(
            (None, block or self.S, None, self.D), lambda i, h, b: (b, i if block else 0, h // self.G, 0)
        )

    def key_shares(self, block: int):
        """Of [B, S, H, D]."""
        return pl.BlockSpec((None, block, None, self.D), lambda i, h, b: (b, i, h, 0))

    def per_query(self, block: int | None):
        """Of [B, H, L]."""
        return pl.BlockSpec((None, None, block or self.L), lambda i, h, b: (b, h, i if block else 0))

    def segments(self, segments, blocks: int):
        """Of `_visits`."""
        if segments is None:
            return [None] * 4
        return [pl.BlockSpec((None, n), lambda i, h, b: (b, 0)) for n in (self.L, self.S, blocks, blocks)]


def _within(tiles: Tiles, L: int, S: int) -> Tiles:
    return tiles._replace(queries=min(tiles.queries, L), keys=min(tiles.keys, S))


def _visits(segments, tiles: Tiles, causal: bool, of_keys: bool = False):
    if segments is None:
        return (None,) * 4
    return *segments, *block_visits(*segments, tiles.queries, tiles.keys, causal=causal, of_keys=of_keys)
