"""One entry point for attention: every backend computes the same function, and the config names which.

The host's own default backend is never asked: under ahead-of-time compilation it is not the target.

Letters: B batch, L queries, S keys, H query heads, K key heads, D head size.
"""

import math

import jax

from virtue_jax.ops.cpu_attention import cpu_attention
from virtue_jax.ops.splash import splash_attention
from virtue_jax.ops.triton_attention import triton_attention
from virtue_jax.ops.xla_attention import xla_attention

# Names of operations in profiles and compiled programs, by which a kernel's arithmetic is known.
CAUSAL_SCOPE, FULL_SCOPE = "causal_attention", "full_attention"


def attention(q_BLHD, k_BSKD, v_BSKD, *, scale=None, causal=False, q_segments=None, kv_segments=None, backend):
    """softmax(scale * q k^T) v within segments, softmax in float32 whatever the input dtype.

    Args:
        q_BLHD: float[B, L, H, D] queries.
        k_BSKD, v_BSKD: float[B, S, K, D] keys and values; K divides H, and query head h reads key head h // (H / K).
        scale: of the logits; None = 1 / sqrt(D).
        causal: query l sees keys 0..l only (L = S).
        q_segments, kv_segments: int[B, L], int[B, S]; a query sees the keys of its own segment. Segment 0 is padding:
            no real query sees it, and what stands at padded queries is finite but means nothing. Give both or neither.
        backend: "xla" (every platform; memory linear in L, no (L, S) array survives into the backward pass),
            "splash" (the Pallas kernel for TPU; L and S multiples of 128), "triton" (ours for NVIDIA GPUs) or "cpu"
            (products in blocks that a CPU's cache holds; for embedding).

    Returns:
        [B, L, H, D] in q's dtype. A query without any visible key gets a finite, meaningless value.

    Raises:
        ValueError: shapes that do not fit together, an unknown backend, or one that cannot compute these shapes.
    """
    _check_shapes(q_BLHD, k_BSKD, v_BSKD, causal, q_segments, kv_segments)
    compute = cpu_attention if backend == CPU else BACKENDS.get(backend)
    if compute is None:
        raise ValueError(f"attention backend {backend!r} is not one of {', '.join(BACKENDS)}: set numerics.attention")
    scale = 1.0 / math.sqrt(q_BLHD.shape[-1]) if scale is None else scale
    with jax.named_scope(CAUSAL_SCOPE if causal else FULL_SCOPE):
        return compute(q_BLHD, k_BSKD, v_BSKD, scale, causal, q_segments, kv_segments)


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


BACKENDS = {"xla": xla_attention, "splash": splash_attention, "triton": triton_attention}
PLATFORMS = {"xla": ("cpu", "cuda", "rocm", "tpu"), "splash": ("tpu",), "triton": ("cuda",)}
CPU = "cpu"  # no choice of a run file: the cost model of training (`train/cost`) does not know it
AUTO = "auto"  # the kernel that is made for a platform; "xla" where none is
KERNELS = {"tpu": "splash", "cuda": "triton"}


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
