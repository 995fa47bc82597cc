"""The Triton programs of `ops/triton_attention.py`: one block of queries, or of keys, of one head.

References: q, d_out, out [queries, D]; k, v [keys, D]; lse, delta [queries]; segments [L], [S] or None; first, last:
the blocks of the other side to visit, by block of this one, or None = all that causality leaves. Where a side is not
the program's own, its whole length is referred to and read block by block. lse is in base 2, as all exponents are.
"""

import math

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from virtue_jax.ops.xla_attention import MASKED

LOG2_E = math.log2(math.e)


def forward_kernel(q_ref, k_ref, v_ref, qs_ref, ks_ref, first_ref, last_ref, out_ref, lse_ref, *, tiles, scale, causal):
    i, parts = pl.program_id(0), powers_of_two(q_ref.shape[-1])
    q = _load(q_ref, pl.ds(0, tiles.queries), parts)

    def visit(j, carry):
        out, highest, total = carry
        keys = pl.ds(j * tiles.keys, tiles.keys)
        logits = _products(q, _load(k_ref, keys, parts)) * (scale * LOG2_E)
        seen = _seen(i, j, tiles, causal, qs_ref, ks_ref)
        logits = logits if seen is None else jnp.where(seen, logits, MASKED)
        higher = jnp.maximum(highest, jnp.max(logits, axis=1))
        shrunk = jnp.exp2(highest - higher)
        weights = jnp.exp2(logits - higher[:, None])
        v = _load(v_ref, keys, parts)
        out = [o * shrunk[:, None] + _dot(weights.astype(x.dtype), x) for o, x in zip(out, v, strict=True)]
        return out, higher, total * shrunk + jnp.sum(weights, axis=1)

    begin = [jnp.zeros((tiles.queries, size), jnp.float32) for _, size in parts]
    highest = jnp.full((tiles.queries,), MASKED, jnp.float32)
    first, last = _key_blocks(i, tiles, causal, k_ref.shape[0], first_ref, last_ref)
    out, highest, total = lax.fori_loop(first, last, visit, (begin, highest, jnp.zeros_like(highest)))
    total = jnp.where(total == 0.0, 1.0, total)  # nothing to visit: padding
    lse_ref[...] = highest + jnp.log2(total)
    _store(out_ref, [o / total[:, None] for o in out], parts)


def query_gradient_kernel(
    q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, qs_ref, ks_ref, first_ref, last_ref, dq_ref,
    *, tiles, scale, causal,
):  # fmt: skip
    i, parts = pl.program_id(0), powers_of_two(q_ref.shape[-1])
    own = pl.ds(0, tiles.queries)
    q, d_out = _load(q_ref, own, parts), _load(d_out_ref, own, parts)
    lse, delta = lse_ref[...], delta_ref[...]

    def visit(j, d_q):
        keys = pl.ds(j * tiles.keys, tiles.keys)
        k = _load(k_ref, keys, parts)
        weights = jnp.exp2(_products(q, k) * (scale * LOG2_E) - lse[:, None])
        seen = _seen(i, j, tiles, causal, qs_ref, ks_ref)
        weights = weights if seen is None else jnp.where(seen, weights, 0.0)
        d_logits = weights * (_products(d_out, _load(v_ref, keys, parts)) - delta[:, None])
        return [d + _dot(d_logits.astype(x.dtype), x) for d, x in zip(d_q, k, strict=True)]

    first, last = _key_blocks(i, tiles, causal, k_ref.shape[0], first_ref, last_ref)
    begin = [jnp.zeros((tiles.queries, size), jnp.float32) for _, size in parts]
    d_q = lax.fori_loop(first, last, visit, begin)
    _store(dq_ref, [d * scale for d in d_q], parts)


def key_gradients_kernel(
    q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, qs_ref, ks_ref, first_ref, last_ref, dk_ref, dv_ref,
    *, tiles, scale, causal,
):  # fmt: skip
    """Works on the transposed square [keys, queries], so that no block of weights is turned around."""
    i, parts = pl.program_id(0), powers_of_two(q_ref.shape[-1])
    own = pl.ds(0, tiles.keys)
    k, v = _load(k_ref, own, parts), _load(v_ref, own, parts)

    def visit(j, carry):
        d_k, d_v = carry
        queries = pl.ds(j * tiles.queries, tiles.queries)
        q, d_out = _load(q_ref, queries, parts), _load(d_out_ref, queries, parts)
        weights = jnp.exp2(_products(k, q) * (scale * LOG2_E) - lse_ref[queries][None, :])
        seen = _seen(j, i, tiles, causal, qs_ref, ks_ref, transposed=True)
        weights = weights if seen is None else jnp.where(seen, weights, 0.0)
        d_v = [d + _dot(weights.astype(x.dtype), x) for d, x in zip(d_v, d_out, strict=True)]
        d_logits = weights * (_products(v, d_out) - delta_ref[queries][None, :])
        return [d + _dot(d_logits.astype(x.dtype), x) for d, x in zip(d_k, q, strict=True)], d_v

    begin = [jnp.zeros((tiles.keys, size), jnp.float32) for _, size in parts]
    first, last = _query_blocks(i, tiles, causal, q_ref.shape[0], first_ref, last_ref)
    d_k, d_v = lax.fori_loop(first, last, visit, (begin, begin))
    _store(dk_ref, [d * scale for d in d_k], parts)
    _store(dv_ref, d_v, parts)


def powers_of_two(size: int) -> list[tuple[int, int]]:
    """(begin, size) of the parts that a head size is worked on in: 80 = 64 + 16."""
    parts, begin = [], 0
    while begin < size:
        part = 1 << ((size - begin).bit_length() - 1)
        parts.append((begin, part))
        begin += part
    return parts


def _load(ref, rows, parts):
    return [triton.load(ref.at[rows, pl.ds(*part)]) for part in parts]


def _store(ref, values, parts) -> None:
    for value, part in zip(values, parts, strict=True):
        triton.store(ref.at[pl.ds(0, ref.shape[0]), pl.ds(*part)], value.astype(ref.dtype))


def _products(rows, columns):
    """Every row's product with every column, over all parts of the head size."""
    return sum(_dot(a, b, trans_b=True) for a, b in zip(rows, columns, strict=True))


def _dot(a, b, trans_b=False):
    return triton.dot(a, b, trans_b=trans_b, precision=lax.Precision.HIGHEST)  # float32 stays float32


def _seen(i, j, tiles, causal, qs_ref, ks_ref, transposed=False):
    """Which queries of block i see which keys of block j; None = all."""
    q_axis, k_axis = (0, 1) if transposed else (1, 0)  # that each lacks
    seen = None
    if qs_ref is not None:
        queries = qs_ref[pl.ds(i * tiles.queries, tiles.queries)]
        keys = ks_ref[pl.ds(j * tiles.keys, tiles.keys)]
        seen = jnp.expand_dims(queries, q_axis) == jnp.expand_dims(keys, k_axis)
    if causal:
        queries = jnp.expand_dims(i * tiles.queries + jnp.arange(tiles.queries), q_axis)
        before = queries >= jnp.expand_dims(j * tiles.keys + jnp.arange(tiles.keys), k_axis)
        seen = before if seen is None else jnp.logical_and(seen, before)
    return seen


def _key_blocks(i, tiles, causal, length, first_ref, last_ref):
    if first_ref is not None:
        return first_ref[i], last_ref[i]
    return 0, lax.div((i + 1) * tiles.queries + tiles.keys - 1, tiles.keys) if causal else length // tiles.keys


def _query_blocks(i, tiles, causal, length, first_ref, last_ref):
    if first_ref is not None:
        return first_ref[i], last_ref[i]
    return lax.div(i * tiles.keys, tiles.queries) if causal else 0, length // tiles.queries
