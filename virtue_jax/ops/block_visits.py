"""Which blocks of keys hold a segment of a block of queries: the others need no visit."""

import jax.numpy as jnp
import numpy as np

_NONE = np.iinfo(np.int32).max


def block_visits(q_segments, kv_segments, block_q: int, block_k: int, *, causal: bool, of_keys: bool = False):
    """(first, last) int32[B, L / block_q]: block i of queries sees nothing outside blocks first <= j < last of keys.

    of_keys: by blocks of keys instead, int32[B, S / block_k], the blocks of queries that see them.

    Segments int[B, L] and int[B, S] over 0 are real. Blocks are told by their lowest and highest segment: the bounds
    are safe whatever the order, and tight where segments are numbered along the row, as packing does.
    """
    low_q, high_q = _ends(q_segments, block_q)
    low_k, high_k = _ends(kv_segments, block_k)
    meet = (low_q[:, :, None] <= high_k[:, None]) & (low_k[:, None] <= high_q[:, :, None])
    if causal:
        queries, keys = jnp.arange(meet.shape[1]), jnp.arange(meet.shape[2])
        meet &= (queries[:, None] + 1) * block_q > keys * block_k
    meet = meet.swapaxes(1, 2) if of_keys else meet
    first, behind = jnp.argmax(meet, 2), jnp.argmax(meet[:, :, ::-1], 2)
    last = jnp.where(meet.any(2), meet.shape[2] - behind, 0)
    return first.astype(jnp.int32), last.astype(jnp.int32)


def _ends(segments, block: int):
    blocks = segments.reshape(len(segments), -1, block)
    real = blocks > 0
    return jnp.where(real, blocks, _NONE).min(2), jnp.where(real, blocks, -1).max(2)
