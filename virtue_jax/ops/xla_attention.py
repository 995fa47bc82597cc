"""Attention as matrix products that every platform compiles, in blocks of queries: memory linear in their number.

Letters: as in `ops/attention.py`; G = H / K query heads per key head.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MASKED = -0.7 * float(np.finfo(np.float32).max)  # as the kernels: a row without a visible key stays finite
LOGITS_BYTES = 128 * 2**20  # of the float32 logits of one block of queries
LEAST_BLOCK = 128  # queries


def xla_attention(q, k, v, scale, causal, q_segments, kv_segments):
    B, L, H, _ = q.shape
    S = k.shape[1]
    block = max(LEAST_BLOCK, LOGITS_BYTES // (4 * B * H * S))
    positions = jnp.arange(L)
    attend = functools.partial(_attend, k_BSKD=k, v_BSKD=v, scale=scale, causal=causal, kv_segments=kv_segments)
    if block >= L:
        return attend(q, positions, q_segments)
    count = -(-L // block)
    block = -(-L // count)  # even blocks: the least padding
    pad = count * block - L

    def blocks(x, axis):
        x = jnp.pad(x, [(0, pad if a == axis else 0) for a in range(x.ndim)])
        return jnp.moveaxis(x.reshape(*x.shape[:axis], count, block, *x.shape[axis + 1 :]), axis, 0)

    segments = None if q_segments is None else blocks(q_segments, 1)
    # The checkpoint makes the backward pass recompute a block's logits instead of keeping all of them.
    body = jax.checkpoint(lambda operands: attend(*operands))
    out = lax.map(body, (blocks(q, 1), blocks(positions, 0), segments))
    return jnp.moveaxis(out, 0, 1).reshape(B, count * block, H, -1)[:, :L]


def _attend(q_BLHD, positions_L, q_segments, *, k_BSKD, v_BSKD, scale, causal, kv_segments):
    B, L, H, D = q_BLHD.shape
    S, K = k_BSKD.shape[1:3]
    q_BLKGD = q_BLHD.reshape(B, L, K, H // K, D)
    logits = jnp.einsum("BLKGD,BSKD->BKGLS", q_BLKGD, k_BSKD, preferred_element_type=jnp.float32) * scale
    if causal:
        logits = jnp.where(positions_L[:, None] >= jnp.arange(S), logits, MASKED)
    if q_segments is not None:
        seen_BLS = q_segments[:, :, None] == kv_segments[:, None, :]
        logits = jnp.where(seen_BLS[:, None, None], logits, MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(v_BSKD.dtype)
    out = jnp.einsum("BKGLS,BSKD->BLKGD", weights, v_BSKD, preferred_element_type=jnp.float32)
    return out.reshape(B, L, H, D).astype(q_BLHD.dtype)
