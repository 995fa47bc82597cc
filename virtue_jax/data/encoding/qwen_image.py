"""RGB image -> Qwen2-VL patches, value for value as the slow (Pillow) image processor of `transformers` makes them."""

import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from virtue_jax.config import CLIP_MEAN, CLIP_STD, VirtueConfig
from virtue_jax.data.example import InvalidExample

MAX_ASPECT_RATIO = 200


@dataclass(frozen=True)
class QwenImage:
    """One image as the vision tower takes it.

    pixels: uint8[h, w, 3], grey levels after the resize; `normalise` makes what the tower computes with. patches:
    uint8[P, 588], the same, values (channel, y, x), ordered (merged row, merged column, row in the 2x2 merge, column
    in it). patch_yx: int32[P, 2], row and column of each patch. grid: rows and columns of patches; P = rows * columns,
    and the tower makes P / 4 vision tokens.
    """

    pixels: np.ndarray
    patches: np.ndarray
    patch_yx: np.ndarray
    grid: tuple[int, int]


def smart_resize(height: int, width: int, *, min_pixels: int, max_pixels: int, factor: int = 28) -> tuple[int, int]:
    """The size (height, width) to which the reference's Qwen2-VL processor resizes: multiples of `factor`, close to the
    aspect ratio, area within the bounds. A side under `factor` or an aspect ratio over 200 gives a square.

    Halves round to even, as Python's `round` does. A side never becomes 0 (the reference lets it, where `max_pixels` is
    under 200 * factor^2).
    """
    if min(height, width) < factor or max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        height = width = max(factor, height, width)
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def qwen_image(image: np.ndarray, config: VirtueConfig, origin: str) -> QwenImage:
    """Resizes (bicubic, rounded to grey levels) and cuts uint8[H, W, 3] into patches.

    An image with a side under one merged patch (28 pixels) is first resized to 56x56, without regard to its aspect
    ratio, as the reference's processor function does.

    Raises:
        InvalidExample: aspect ratio over 200; the reference squashes such an image into a square without a word.
    """
    height, width = image.shape[:2]
    check_aspect_ratio(height, width, origin)
    picture = Image.fromarray(image)
    if min(height, width) < _factor(config):
        picture = picture.resize((2 * _factor(config),) * 2, Image.Resampling.BICUBIC)
    height, width = resized_size(height, width, config)
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
    return QwenImage(pixels, *patchify(pixels, config.vision.patch_size, config.vision.spatial_merge_size))


def check_aspect_ratio(height: int, width: int, origin: str) -> None:
    """Raises InvalidExample for an image that is more than 200 times as long as wide."""
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise InvalidExample(
            f"{origin}: image of {width}x{height} pixels (width x height): one side is more than {MAX_ASPECT_RATIO} "
            "times the other; crop it or cut it into pieces"
        )


def resized_size(height: int, width: int, config: VirtueConfig) -> tuple[int, int]:
    """The size (height, width) at which `qwen_image` cuts an image of this size into patches."""
    if min(height, width) < _factor(config):
        height = width = 2 * _factor(config)
    return smart_resize(
        height, width, min_pixels=config.min_pixels, max_pixels=config.max_pixels, factor=_factor(config)
    )


def _factor(config: VirtueConfig) -> int:
    return config.vision.patch_size * config.vision.spatial_merge_size


def patchify(pixels: np.ndarray, patch: int, merge: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Cuts [h, w, 3] into (patches, patch_yx, grid) of `QwenImage`; h and w are multiples of patch * merge."""
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    blocks = pixels.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
    patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3 * patch * patch)
    yx = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).astype(np.int32)
    yx = yx.reshape(rows // merge, merge, columns // merge, merge, 2).transpose(0, 2, 1, 3, 4).reshape(-1, 2)
    return np.ascontiguousarray(patches), np.ascontiguousarray(yx), (rows, columns)


def normalise(pixels: np.ndarray) -> np.ndarray:
    """uint8[..., 3] grey levels -> float32[..., 3], divided by 255 and CLIP-normalised."""
    return _normalised_levels()[pixels, np.arange(3)]


def normalise_patches(patches: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """`normalise` of uint8[P, 588] patches, whose channels are consecutive: float32[P, 588], written into `out`."""
    width = patches.shape[1] // 3
    out = np.empty(patches.shape, np.float32) if out is None else out
    for channel, levels in enumerate(_normalised_levels().T):
        values = slice(channel * width, (channel + 1) * width)
        out[:, values] = levels[patches[:, values]]
    return out


@functools.cache
def _normalised_levels() -> np.ndarray:
    """float32[256, 3]: each grey level of each channel after /255 and CLIP normalisation, rounded where `transformers`
    rounds (the product with 1/255 in float64, then everything in float32)."""
    levels = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    return (levels[:, None] - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
