"""Queries, keys and values of one projection, in the order of memory that attention reads them in.

Letters: R rows, L tokens, C channels in, H heads, D head size.
"""

import jax.numpy as jnp


def project_heads(x_RLC, kernel, bias, heads: int):
    """Three arrays [R, L, H, D]. kernel: [C, 3 H D], bias: [3 H D], of x's dtype."""
    return jnp.moveaxis((x_RLC @ kernel + bias).reshape(*x_RLC.shape[:2], 3, heads, -1), 2, 0)


def project_length_last(x_RLC, kernel, bias, heads: int, turn=lambda part, x_RHDL: x_RHDL):
    """The same for the TPU kernel, which reads heads of no whole lanes with the length last (`ops/splash.py`): made so,
    they and their halves take no lanes for padding, and nothing is moved about.

    turn: applied to (0 queries, 1 keys or 2 values, float[R, H, D, L]) while the length is last.
    """
    kernel = kernel.reshape(len(kernel), 3, heads, -1)
    bias = bias.reshape(*kernel.shape[1:], 1)
    # One product each, so that none has to be cut out of the others' result.
    parts = (jnp.einsum("rlc,chd->rhdl", x_RLC, kernel[:, part]) + bias[part] for part in range(3))
    return [turn(part, y).transpose(0, 3, 1, 2) for part, y in enumerate(parts)]
