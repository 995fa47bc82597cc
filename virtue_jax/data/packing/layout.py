"""The arrays of a row group, from its shape: names, dtypes, sizes, and a batch of padding only."""

import numpy as np

from virtue_jax.batch import NO_TOKEN, Batch, RowShape

PATCHES_PER_TOKEN = 4  # Qwen2-VL merges 2x2 patches into one vision token
PIXELS = ("float32", "uint8")

_FILLERS = {"content": -1, "positives": -1, "vision_slot": -1, "prompt_slot": -1, "prompt_labels": NO_TOKEN}


def batch_layout(
    shape: RowShape, *, sam_size: int, patch_dim: int = 588, pixels: str = "float32"
) -> dict[str, tuple[type, tuple[int, ...]]]:
    """dtype and shape without the leading R of every array that a batch of this shape has; absent names are None.

    Raises:
        ValueError: unknown `pixels`.
    """
    if pixels not in PIXELS:
        raise ValueError(f"pixels {pixels!r}: expected one of {', '.join(PIXELS)}")
    colours = np.dtype(pixels).type
    slots, examples, vision = shape.slots, shape.examples, (shape.vision_rows, shape.patches)
    layout = {
        "tokens": (np.int32, (slots,)),
        "segments": (np.int32, (slots,)),
        "positions": (np.int32, (3, slots)),
        "pool": (np.int32, (examples,)),
        "side": (np.int32, (examples,)),
        "content": (np.int32, (examples,)),
        "positives": (np.int32, (examples, shape.positives)),
        "valid": (np.bool_, (examples,)),
    }
    if shape.patches:
        layout |= {
            "vision_slot": (np.int32, (slots,)),
            "patches": (colours, (*vision, patch_dim)),
            "patch_yx": (np.int32, (*vision, 2)),
            "patch_segments": (np.int32, vision),
        }
    if shape.prompts:
        layout |= {
            "prompt_slot": (np.int32, (slots,)),
            "sam_images": (colours, (shape.images, sam_size, sam_size, 3)),
            "prompt_image": (np.int32, (shape.prompts,)),
            "prompt_points": (np.float32, (shape.prompts, shape.points, 2)),
            "prompt_labels": (np.int32, (shape.prompts, shape.points)),
            "has_mask": (np.bool_, (shape.prompts,)),
        }
    if shape.masks:
        layout["prompt_masks"] = (np.float32, (shape.prompts, sam_size // 4, sam_size // 4))
    return layout


def empty_batch(rows: int, shape: RowShape, sam_size: int, patch_dim: int = 588, pixels: str = "float32") -> Batch:
    """A batch of padding only."""
    layout = batch_layout(shape, sam_size=sam_size, patch_dim=patch_dim, pixels=pixels)
    arrays = {}
    for name, (dtype, tail) in layout.items():
        filler = _FILLERS.get(name, 0)
        # Zeros that nobody writes to stay unmapped memory: most of a float32 batch is `sam_images`.
        arrays[name] = np.full((rows, *tail), filler, dtype) if filler else np.zeros((rows, *tail), dtype)
    return Batch(**arrays)


def check_shape(shape: RowShape) -> None:
    """Raises:
    ValueError: capacities that contradict each other.
    """
    if shape.patches % PATCHES_PER_TOKEN or bool(shape.patches) != bool(shape.vision_rows):
        raise ValueError(f"{shape}: patches must be a multiple of 4, and 0 exactly where vision_rows is 0")
    if bool(shape.prompts) != bool(shape.images) or (shape.prompts and not shape.patches):
        raise ValueError(f"{shape}: prompts need images and patches, and images are what prompts are on")
    if (shape.points or shape.masks) and not shape.prompts:
        raise ValueError(f"{shape}: points and masks need prompts")
    if min(shape.slots, shape.examples, shape.positives) < 1:
        raise ValueError(f"{shape}: slots, examples and positives must be at least 1")
