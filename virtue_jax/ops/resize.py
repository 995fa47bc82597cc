"""Resizing of feature maps, exact to PyTorch. (Images are resized on the host, in `data/`.)"""

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax

CUBIC_A = -0.75  # PyTorch's; JAX's "cubic" has -0.5


def resize_bicubic(x_HWC, height: int, width: int):
    """float[H, W, C] -> float32[height, width, C], as `F.interpolate(mode="bicubic", align_corners=False)`.

    Separable: one constant matrix per axis, products in full float32 on every platform.
    """
    rows = jnp.asarray(bicubic_matrix(x_HWC.shape[0], height))
    columns = jnp.asarray(bicubic_matrix(x_HWC.shape[1], width))
    x_HWC = x_HWC.astype(jnp.float32)
    half = jnp.einsum("hH,HWC->hWC", rows, x_HWC, precision=lax.Precision.HIGHEST)
    return jnp.einsum("wW,hWC->hwC", columns, half, precision=lax.Precision.HIGHEST)


@functools.cache
def bicubic_matrix(size_in: int, size_out: int) -> np.ndarray:
    """float32[size_out, size_in]: cubic convolution with half-pixel centres, edges repeated, no antialiasing."""
    centres = (np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5
    first = np.floor(centres).astype(int)
    matrix = np.zeros((size_out, size_in))
    for tap in range(-1, 3):
        sources = np.clip(first + tap, 0, size_in - 1)
        # Edge taps meet in one column, so the weights add up.
        np.add.at(matrix, (np.arange(size_out), sources), _cubic(np.abs(centres - (first + tap))))
    return matrix.astype(np.float32)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel (1981) with a = `CUBIC_A`."""
    a, d = CUBIC_A, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
