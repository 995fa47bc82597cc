"""One entry point for attention: every backend computes the same function, and the config names which.

The host's own default backend is never asked: under ahead-of-time compilation it is not the target.

Letters: B batch, L queries, S keys, H query heads, K key heads, G = H / K query heads per key head, D head size.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from virtue_jax.parallel.constrain import ROWS, TENSOR, auto_axes, spec_of

MASKED = -0.7 * float(np.finfo(np.float32).max)  # as the splash kernel: a row without a visible key stays finite
LOGITS_BYTES = 128 * 2**20  # "xla" works through the queries in blocks whose float32 logits fit this
LANES = 128
# The largest block that the TPU compiler was seen to fit into a v5e's scoped memory, forwards and backwards.
FAST_SPLASH_BLOCK = 512  # smaller ones run, but slowly: lengths had better be multiples of it
LARGEST_SPLASH_BLOCK = 1408


def attention(q_BLHD, k_BSKD, v_BSKD, *, scale=None, causal=False, q_segments=None, kv_segments=None, backend):
    """softmax(scale * q k^T) v within segments, softmax in float32 whatever the input dtype.

    Args:
        q_BLHD: float[B, L, H, D] queries.
        k_BSKD, v_BSKD: float[B, S, K, D] keys and values; K divides H, and query head h reads key head h // (H / K).
        scale: of the logits; None = 1 / sqrt(D).
        causal: query l sees keys 0..l only (L = S).
        q_segments, kv_segments: int[B, L], int[B, S]; a query sees the keys of its own segment. Segment 0 is padding:
            no real query sees it, and what stands at padded queries is finite but means nothing. Give both or neither.
        backend: "xla" (every platform; memory linear in L, no (L, S) array survives into the backward pass) or
            "splash" (the Pallas kernel for TPU; L and S multiples of 128).

    Returns:
        [B, L, H, D] in q's dtype. A query without any visible key gets a finite, meaningless value.

    Raises:
        ValueError: shapes that do not fit together, an unknown backend, or one that cannot compute these shapes.
    """
    _check_shapes(q_BLHD, k_BSKD, v_BSKD, causal, q_segments, kv_segments)
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r} is not one of {', '.join(BACKENDS)}: set numerics.attention")
    scale = 1.0 / math.sqrt(q_BLHD.shape[-1]) if scale is None else scale
    return BACKENDS[backend](q_BLHD, k_BSKD, v_BSKD, scale, causal, q_segments, kv_segments)


def _check_shapes(q, k, v, causal, q_segments, kv_segments):
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    if q.ndim != 4 or k.ndim != 4 or v.shape[:3] != k.shape[:3]:
        raise ValueError(f"attention: expected q[B, L, H, D], k[B, S, K, D], v[B, S, K, D], got {shapes}")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or v.shape[3] != k.shape[3]:
        raise ValueError(f"attention: batch or head sizes differ: {shapes}")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"attention: {k.shape[2]} key heads do not divide {q.shape[2]} query heads: {shapes}")
    if causal and q.shape[1] != k.shape[1]:
        raise ValueError(f"attention: causal needs as many queries as keys, got {shapes}")
    if (q_segments is None) != (kv_segments is None):
        raise ValueError("attention: q_segments and kv_segments go together; give both or neither")
    if q_segments is not None and (q_segments.shape != q.shape[:2] or kv_segments.shape != k.shape[:2]):
        expected = f"{q.shape[:2]} and {k.shape[:2]}"
        raise ValueError(f"attention: segments {q_segments.shape} and {kv_segments.shape}, expected {expected}")


def _xla(q, k, v, scale, causal, q_segments, kv_segments):
    B, L, H, _ = q.shape
    S = k.shape[1]
    block = max(LANES, LOGITS_BYTES // (4 * B * H * S))
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
    body = jax.checkpoint(lambda one: attend(*one))
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


def _splash(q, k, v, scale, causal, q_segments, kv_segments, *, interpret=False):
    """The kernel on every device's own rows and heads: the compiler cannot split a kernel by itself."""

    def kernel(q, k, v, q_segments, kv_segments):
        return _splash_kernel(q, k, v, scale, causal, q_segments, kv_segments, interpret)

    present = auto_axes()
    if not present:
        return kernel(q, k, v, q_segments, kv_segments)
    heads = present.get(TENSOR, 1)
    if k.shape[2] % heads and heads % k.shape[2] == 0:
        # Fewer key heads than devices: each device holds a copy of the one that its queries read.
        k, v = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (k, v))
    _check_split(q, k, present)
    split = spec_of(q.shape, (ROWS, None, TENSOR))
    segments = None if q_segments is None else spec_of(q_segments.shape, (ROWS,))
    return jax.shard_map(
        kernel,
        in_specs=(split, split, split, segments, segments),
        out_specs=split,
        axis_names=set(present),
        check_vma=False,
    )(q, k, v, q_segments, kv_segments)


def _check_split(q, k, present: dict[str, int]) -> None:
    rows = math.prod(present.get(axis, 1) for axis in ROWS)
    heads = present.get(TENSOR, 1)
    if q.shape[0] % rows or q.shape[2] % heads or k.shape[2] % heads:
        raise ValueError(
            f"attention backend 'splash': {q.shape[0]} rows, {q.shape[2]} query and {k.shape[2]} key heads do not "
            f"divide over the mesh axes {present}; choose row counts, micro-batches and a tensor axis that do"
        )


def _splash_kernel(q, k, v, scale, causal, q_segments, kv_segments, interpret):
    L, H, S = q.shape[1], q.shape[2], k.shape[1]
    block_q, block_kv = splash_block(L, "queries"), splash_block(S, "keys")
    sizes = splash.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_q_dq=block_q,
        block_kv_dq=block_kv,
    )
    mask = splash_mask.CausalMask((L, S)) if causal else splash_mask.FullMask((L, S))
    kernel = splash.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * H),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segments = None if q_segments is None else splash.SegmentIds(q=q_segments, kv=kv_segments)
    scaled = (q.astype(jnp.float32) * scale).astype(q.dtype)  # the kernel has no scale of its own
    heads_first = [x.transpose(0, 2, 1, 3) for x in (scaled, k, v)]
    out = jax.vmap(kernel)(*heads_first, segments)
    return out.transpose(0, 2, 1, 3).astype(q.dtype)


def splash_block(length: int, what: str) -> int:
    """The largest block that divides the length."""
    blocks = [b for b in range(LANES, LARGEST_SPLASH_BLOCK + 1, LANES) if length % b == 0]
    if not blocks:
        raise ValueError(
            f"attention backend 'splash': {length} {what} are not a multiple of {LANES}; make the "
            f"row shape's slots or patches a multiple of {LANES} (512 is faster), or set numerics.attention='xla'"
        )
    return blocks[-1]


BACKENDS = {"xla": _xla, "splash": _splash}
PLATFORMS = {"xla": ("cpu", "cuda", "rocm", "tpu"), "splash": ("tpu",)}
AUTO = "auto"  # the kernel that is made for a platform; "xla" where none is
KERNELS = {"tpu": "splash"}


def resolve_backend(backend: str, platform: str) -> str:
    """The backend that `numerics.attention` names on a platform ("tpu", "cuda", "rocm", "cpu"): "auto" is its kernel.

    Raises:
        ValueError: unknown backend, or one that is for another platform; says which can be used.
    """
    if backend == AUTO:
        return KERNELS.get(platform, "xla")
    usable = [name for name, platforms in PLATFORMS.items() if platform in platforms]
    if backend not in usable:
        raise ValueError(
            f"attention backend {backend!r} does not run on {platform!r}: set numerics.attention to one of "
            f"{[AUTO, *usable]}"
        )
    return backend
