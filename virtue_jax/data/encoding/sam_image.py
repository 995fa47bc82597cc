"""Image -> SAM-2's square input: PyTorch's antialiased bilinear resize, ImageNet mean and standard deviation.

In float32 by own code, to PyTorch's last digits; in grey levels by Pillow.
"""

import functools

import numpy as np
from PIL import Image

from virtue_jax.config import IMAGENET_MEAN, IMAGENET_STD

_BLOCK_ROWS = 16  # output rows per step of the resize, so that what a step touches stays in the cache


def sam_image(pixels: np.ndarray, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """SAM-2's input float32[size, size, 3]: resized without keeping the aspect ratio or rounding, then normalised.

    pixels: uint8[H, W, 3], the image itself (`Compat.sam_source` "raw": divided by 255, normalised once), or
    float32[h, w, 3], Qwen's resized and CLIP-normalised image ("qwen": normalised a second time, as the released code).
    out: array to write into and return.
    """
    if pixels.dtype == np.uint8:
        pixels = pixels.astype(np.float32) / np.float32(255)
    resized = resize(pixels, size, size, out)
    resized -= np.array(IMAGENET_MEAN, np.float32)
    resized /= np.array(IMAGENET_STD, np.float32)
    return resized


def sam_levels(pixels: np.ndarray, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """uint8[H, W, 3] -> uint8[size, size, 3]: the resize of `sam_image` in grey levels, not normalised.

    Pillow's filter is the same triangle, three to five times as fast; it rounds after each axis, and is at most one
    level from the exact resize rounded. out: array to write into and return.
    """
    levels = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)
    if out is None:
        return np.array(levels)
    out[...] = levels
    return out


def resize(pixels: np.ndarray, height: int, width: int, out: np.ndarray | None = None) -> np.ndarray:
    """float32[H, W, C] -> float32[height, width, C], as PyTorch's `interpolate(mode="bilinear", antialias=True)`.

    Half-pixel centres; a triangle filter, widened by the ratio of the sizes where an axis shrinks. out: array to write
    into and return; a new one without.
    """
    channels = pixels.shape[2]
    if out is None:
        out = np.empty((height, width, channels), np.float32)
    if pixels.shape[:2] == (height, width):
        out[...] = pixels
        return out
    rows = _resize_rows(pixels.reshape(pixels.shape[0], -1), height).reshape(height, -1, channels)
    columns = np.ascontiguousarray(rows.transpose(1, 0, 2)).reshape(rows.shape[1], -1)
    out[...] = _resize_rows(columns, width).reshape(width, height, channels).transpose(1, 0, 2)
    return out


def _resize_rows(pixels: np.ndarray, size: int) -> np.ndarray:
    """float32[n, m] -> float32[size, m]: `resize_weights` applied to the rows."""
    if len(pixels) == size:
        return pixels
    sources, weights = resize_weights(len(pixels), size)
    resized = np.empty((size, pixels.shape[1]), np.float32)
    for start in range(0, size, _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        total = pixels[sources[block, 0]]
        total *= weights[block, 0, None]
        for tap in range(1, sources.shape[1]):
            term = pixels[sources[block, tap]]
            term *= weights[block, tap, None]
            total += term
        resized[block] = total
    return resized


@functools.lru_cache(maxsize=512)
def resize_weights(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The resize matrix [size, length] of one axis as its band: sources int[size, taps], weights float32[size, taps].

    Output i is the sum over t of weights[i, t] * input[sources[i, t]]; the weights of an output sum to 1.
    """
    scale = length / size
    reach = max(scale, 1.0)
    centre = scale * (np.arange(size) + 0.5)
    first = np.maximum((centre - reach + 0.5).astype(int), 0)
    last = np.minimum((centre + reach + 0.5).astype(int), length)
    sources = first[:, None] + np.arange((last - first).max())
    weights = np.maximum(0.0, 1.0 - np.abs((sources + 0.5 - centre[:, None]) / reach))
    weights[sources >= last[:, None]] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    return np.minimum(sources, length - 1), weights.astype(np.float32)
