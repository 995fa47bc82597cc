"""A map cut into square windows, and put together again.

Letters: B batch, H, W map, N windows over the batch, w side of a window, C channels.
"""

import jax.numpy as jnp


def cut_windows(x_BHWC, window: int):
    """[B, H, W, C] -> [N, w, w, C], row-major, the map zero-padded to whole windows.

    The padding is seen by attention as keys: SAM-2 does not mask it.
    """
    B, H, W, C = x_BHWC.shape
    x = jnp.pad(x_BHWC, ((0, 0), (0, -H % window), (0, -W % window), (0, 0)))
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.reshape(B, rows, window, columns, window, C).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B * rows * columns, window, window, C)


def join_windows(x_NwwC, B: int, H: int, W: int):
    """The inverse of `cut_windows`: [N, w, w, C] -> [B, H, W, C], padding dropped."""
    window, C = x_NwwC.shape[1], x_NwwC.shape[3]
    rows, columns = -(-H // window), -(-W // window)
    x = x_NwwC.reshape(B, rows, columns, window, window, C).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, rows * window, columns * window, C)[:, :H, :W]


def max_pool(x_BHWC):
    """The maxima of 2x2 places: [B, H, W, C] -> [B, H/2, W/2, C]."""
    B, H, W, C = x_BHWC.shape
    return x_BHWC.reshape(B, H // 2, 2, W // 2, 2, C).max(axis=(2, 4))
