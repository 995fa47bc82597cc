"""A kernel on every device's own rows and heads: the compiler cannot split a kernel by itself."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from virtue_jax.parallel.constrain import ROWS, TENSOR, auto_axes, spec_of


def on_each_device(kernel: Callable, q_BLHD, k_BSKD, v_BSKD, q_segments, kv_segments, *, backend: str):
    """`kernel(q, k, v, q_segments, kv_segments)` mapped over the mesh axes that the compiler would split work over:
    rows over data and fsdp, heads over tensor. Without such axes, the kernel itself.

    Raises:
        ValueError: rows or heads that the axes do not divide; names the backend.
    """
    q, k, v = q_BLHD, k_BSKD, v_BSKD
    present = auto_axes()
    if not present:
        return kernel(q, k, v, q_segments, kv_segments)
    heads = present.get(TENSOR, 1)
    if k.shape[2] % heads and heads % k.shape[2] == 0:
        # Fewer key heads than devices: each device holds a copy of the one that its queries read.
        k, v = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (k, v))
    _check_split(q, k, present, backend)
    split = spec_of(q.shape, (ROWS, None, TENSOR))
    segments = None if q_segments is None else spec_of(q_segments.shape, (ROWS,))
    return jax.shard_map(
        kernel,
        in_specs=(split, split, split, segments, segments),
        out_specs=split,
        axis_names=set(present),
        check_vma=False,
    )(q, k, v, q_segments, kv_segments)


def _check_split(q, k, present: dict[str, int], backend: str) -> None:
    rows = math.prod(present.get(axis, 1) for axis in ROWS)
    heads = present.get(TENSOR, 1)
    if q.shape[0] % rows or q.shape[2] % heads or k.shape[2] % heads:
        raise ValueError(
            f"attention backend {backend!r}: {q.shape[0]} rows, {q.shape[2]} query and {k.shape[2]} key heads do not "
            f"divide over the mesh axes {present}; choose row counts, micro-batches and a tensor axis that do"
        )
