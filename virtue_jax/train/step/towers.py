"""The frozen image towers over one step: the images of all row groups together, a few at a time.

They need no gradient, so that how many run at once is their own matter, not the language model's: enough to fill the
matrix units, few enough to need little memory. One loop over all groups is also one program instead of several.
"""

import math
from collections.abc import Callable, Sequence

import jax

from virtue_jax.batch import Batch
from virtue_jax.models.virtue import TowerOutputs, Virtue
from virtue_jax.parallel.constrain import ROWS, auto_axes, constrain, join_rows, split_rows
from virtue_jax.train.step.chunks import encode_in_chunks

# On one device at once. More changes no product's efficiency: one image is 65,536 places, or thousands of patches.
MOST_IMAGES = 4
MOST_PATCHES = 10_240


def encode_towers(model: Virtue, groups: Sequence[Batch]) -> tuple[TowerOutputs, ...]:
    """The towers' outputs of every row group (`Virtue.towers`), without a gradient."""
    vision, maps = _vision_tokens(model, groups), _image_maps(model, groups)
    outputs = []
    for i, batch in enumerate(groups):
        tokens = vision.get(i)
        rows = len(batch.tokens)
        outputs.append(
            TowerOutputs(
                vision=None if tokens is None else constrain(tokens.reshape(rows, -1, tokens.shape[-1]), ROWS),
                fused=model.fuse_prompts(batch, maps[i]) if i in maps else None,
            )
        )
    return jax.lax.stop_gradient(tuple(outputs))


def _image_maps(model: Virtue, groups: Sequence[Batch]) -> dict[int, jax.Array]:
    """{group: [R * I, h, w, D]} of the groups that have images for SAM-2."""
    images = {i: _flat(batch.sam_images) for i, batch in enumerate(groups) if batch.sam_images is not None}
    return _together(model.image_maps, images, MOST_IMAGES)


def _vision_tokens(model: Virtue, groups: Sequence[Batch]) -> dict[int, jax.Array]:
    """{group: [R * V, P / 4, hidden]} of the groups that have patches; those with rows of one length run together."""
    by_length: dict[int, dict] = {}
    for i, batch in enumerate(groups):
        if batch.patches is not None:
            rows = tuple(map(_flat, (batch.patches, batch.patch_yx, batch.patch_segments)))
            by_length.setdefault(rows[0].shape[1], {})[i] = rows
    tokens = {}
    for length, rows in by_length.items():
        tokens |= _together(lambda part: model.vision_rows(*part), rows, max(1, MOST_PATCHES // length))
    return tokens


def _together(encode: Callable, parts: dict[int, jax.Array], most: int) -> dict[int, jax.Array]:
    """encode() of the parts' items, joined along the leading axis, at most `most` on one device at once."""
    if not parts:
        return {}
    sizes = [len(jax.tree.leaves(part)[0]) for part in parts.values()]
    joined = jax.tree.map(lambda *leaves: join_rows(leaves), *parts.values())
    encoded = encode_in_chunks(encode, joined, _chunks(sum(sizes), most))
    return dict(zip(parts, split_rows(encoded, sizes), strict=True))


def _chunks(items: int, most: int) -> int:
    """The fewest equal parts of at most `most` items on one device."""
    devices = math.prod(auto_axes().values())
    devices = devices if items % devices == 0 else 1
    here = items // devices
    return next(parts for parts in range(1, here + 1) if here % parts == 0 and here // parts <= most)


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
