"""Attention inside the windows of a map, its projections included: as one kernel on TPUs, as products elsewhere.

Letters: as in `ops/windows.py`; D channels out.
"""

import functools

import jax
import jax.numpy as jnp

from virtue_jax.ops.attention import FULL_SCOPE
from virtue_jax.ops.window_kernel import plan, window_kernel
from virtue_jax.ops.windows import cut_windows, join_windows, max_pool
from virtue_jax.ops.xla_attention import xla_attention
from virtue_jax.parallel.constrain import EVERY, auto_axes, spec_of


def window_attention(x_BHWC, qkv, proj, *, heads: int, window: int, pooled: bool, backend: str):
    """Multi-head attention of every token to those of its own window, queries, keys, values and outputs projected.

    The map is padded with zeros to whole windows, and the padding is seen as keys: SAM-2 does not mask it.

    Args:
        x_BHWC: float[B, H, W, C].
        qkv: (kernel[C, 3 D], bias[3 D]) of x's dtype: queries, keys, values, each cut into heads.
        proj: (kernel[D, D], bias[D]).
        pooled: each 2x2 queries become their maximum; H, W and window are even.
        backend: of `numerics.attention`: "splash" stands for this kernel too, which is for TPUs; all others for
            products, windows being far too short for the kernels they name; so are channels too many for the kernel.

    Returns:
        [B, H, W, D] in x's dtype, or [B, H/2, W/2, D]. Gradients are those of the products.
    """
    planned = backend == "splash" and plan(x_BHWC.shape, len(proj[0]), heads, window, pooled, x_BHWC.dtype)
    attend = window_attention_tpu if planned else window_attention_xla
    with jax.named_scope(FULL_SCOPE):
        return attend(x_BHWC, *qkv, *proj, heads=heads, window=window, pooled=pooled)


def window_attention_xla(x_BHWC, qkv, qkv_bias, proj, proj_bias, *, heads: int, window: int, pooled: bool):
    """By products that every platform compiles."""
    B, H, W, _ = x_BHWC.shape
    D = proj.shape[0]
    x = cut_windows(x_BHWC, window)
    q, k, v = jnp.split(x @ qkv + qkv_bias, 3, axis=-1)
    if pooled:
        q, H, W, window = max_pool(q), H // 2, W // 2, window // 2
    q, k, v = (y.reshape(len(y), -1, heads, D // heads) for y in (q, k, v))
    y = xla_attention(q, k, v, (D // heads) ** -0.5, False, None, None)
    # Projected after the padding of the windows is gone.
    return join_windows(y.reshape(-1, window, window, D), B, H, W) @ proj + proj_bias


def window_attention_tpu(x_BHWC, *parameters, heads: int, window: int, pooled: bool, interpret: bool = False):
    """By the kernel, on every device's own images. interpret: on a CPU, for tests."""
    run = functools.partial(_by_kernel, heads, window, pooled, interpret)
    axes = auto_axes()
    if axes:
        images, whole = spec_of(x_BHWC.shape, (EVERY,)), jax.sharding.PartitionSpec()
        specs = (images, *[whole] * len(parameters))
        run = jax.shard_map(run, in_specs=specs, out_specs=images, axis_names=set(axes), check_vma=False)
    return run(x_BHWC, *parameters)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _by_kernel(heads, window, pooled, interpret, *inputs):
    return window_kernel(*inputs, heads=heads, window=window, pooled=pooled, interpret=interpret)


def _forward(heads, window, pooled, interpret, *inputs):
    return _by_kernel(heads, window, pooled, interpret, *inputs), inputs


def _backward(heads, window, pooled, _interpret, inputs, gradient):
    """Without a kernel: the trunk is seldom trained."""
    products = functools.partial(window_attention_xla, heads=heads, window=window, pooled=pooled)
    return jax.vjp(products, *inputs)[1](gradient)


_by_kernel.defvjp(_forward, _backward)
