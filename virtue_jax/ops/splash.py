"""Attention by the Pallas kernel for TPUs that jax ships (splash attention)."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from virtue_jax.ops.per_device import on_each_device

LANES = 128
KERNEL_OUTPUT = "attention_output"  # name of what a backward pass may keep, so as not to run the kernel again
# Blocks of 1,408 fit a v5e's scoped memory only when the compiler tries hard (libtpu 0.0.42).
FAST_SPLASH_BLOCK = 512  # smaller ones run, but slowly: lengths had better be multiples of it
LARGEST_SPLASH_BLOCK = 1024


def splash_attention(q, k, v, scale, causal, q_segments, kv_segments, *, interpret=False):
    """`ops.attention.attention` on TPUs; lengths are multiples of 128. interpret: on a CPU, for tests."""
    kernel = functools.partial(_kernel, scale=scale, causal=causal, interpret=interpret)
    return on_each_device(kernel, q, k, v, q_segments, kv_segments, backend="splash")


def _kernel(q, k, v, q_segments, kv_segments, *, scale, causal, interpret):
    L, H, S = q.shape[1], q.shape[2], k.shape[1]
    block_q, block_kv = splash_block(L, "queries"), splash_block(S, "keys")
    # A head that is no multiple of the lanes lies across them, so that none are wasted on padding.
    layout = splash.QKVLayout.HEAD_DIM_MINOR if q.shape[3] % LANES == 0 else splash.QKVLayout.SEQ_MINOR
    sizes = splash.BlockSizes(
        q_layout=layout,
        k_layout=layout,
        v_layout=layout,
        block_q=block_q,
        block_kv=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        use_fused_bwd_kernel=True,  # five products backwards instead of the seven of two kernels
    )
    mask = splash_mask.CausalMask((L, S)) if causal else splash_mask.FullMask((L, S))
    kernel = splash.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * H),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=KERNEL_OUTPUT,
        interpret=interpret,
    )
    segments = None if q_segments is None else splash.SegmentIds(q=q_segments, kv=kv_segments)
    scaled = (q.astype(jnp.float32) * scale).astype(q.dtype)  # the kernel has no scale of its own
    heads_first = [x.transpose(0, 2, 1, 3) for x in (scaled, k, v)]
    out = jax.vmap(kernel)(*heads_first, segments)
    return out.transpose(0, 2, 1, 3).astype(q.dtype)


def splash_block(length: int, what: str) -> int:
    """The largest block of the kernel that divides `length`. Raises ValueError: none does."""
    block = largest_block(length)
    if block is None:
        raise ValueError(
            f"attention backend 'splash': {length} {what} are not a multiple of {LANES}; make the "
            f"row shape's slots or patches a multiple of {LANES} (512 is faster), or set numerics.attention='xla'"
        )
    return block


def largest_block(length: int) -> int | None:
    """That divides the length; None where none does."""
    return max((b for b in range(LANES, LARGEST_SPLASH_BLOCK + 1, LANES) if length % b == 0), default=None)
