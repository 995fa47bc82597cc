"""Inputs of attention, and attention from its definition."""

import jax.numpy as jnp
import numpy as np


def inputs(B=2, L=256, S=None, H=4, K=2, D=16, dtype=jnp.float32, seed=0):
    """q[B, L, H, D], k[B, S, K, D], v[B, S, K, D] of unit variance."""
    rng = np.random.default_rng(seed)
    S = S or L
    shapes = (B, L, H, D), (B, S, K, D), (B, S, K, D)
    return [jnp.asarray(rng.standard_normal(s), dtype) for s in shapes]


def segments_of(B, L):
    """Two examples and padding in each row, cut elsewhere in every row."""
    cuts = [(L // 3 + 5 * b, 2 * L // 3 + 3 * b) for b in range(B)]
    index = np.arange(L)
    return jnp.asarray([np.where(index < c, 1, np.where(index < d, 2, 0)) for c, d in cuts], jnp.int32)


def oracle(q, k, v, scale, mask_BLS):
    """Attention from its definition in float64, one head at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, h in np.ndindex(q.shape[0], q.shape[2]):
        logits = q[b, :, h] @ k[b, :, h // (q.shape[2] // k.shape[2])].T * scale
        weights = np.where(mask_BLS[b], np.exp(logits - logits.max(-1, keepdims=True)), 0.0)
        out[b, :, h] = weights / weights.sum(-1, keepdims=True) @ v[b, :, h // (q.shape[2] // k.shape[2])]
    return out


def visible(segments, causal):
    """bool[B, L, L]: which keys a query sees."""
    segments = np.asarray(segments)
    mask = segments[:, :, None] == segments[:, None, :]
    return mask & np.tri(segments.shape[1], dtype=bool) if causal else mask
