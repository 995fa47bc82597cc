"""VIRTUE assembled: image towers -> segmentation and vision tokens -> language model -> one vector per example."""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from virtue_jax.batch import Batch
from virtue_jax.config import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Numerics, VirtueConfig
from virtue_jax.models.connector import Connector
from virtue_jax.models.lora import adapt
from virtue_jax.models.qwen2_text import QwenText
from virtue_jax.models.qwen2_vision import QwenVision
from virtue_jax.models.sam2 import Sam2
from virtue_jax.parallel.constrain import EVERY, ROWS, constrain, join_rows, split_rows


def towers_are_frozen(trainable: Iterable[str]) -> bool:
    """Whether no parameter of the image towers is among these paths."""
    return not any(path.startswith(("sam2.", "vision.")) for path in trainable)


class TowerOutputs(NamedTuple):
    """What the image towers say of a row group; None where the group has no images or no segmentation.

    vision: [R, V * P/4, hidden] vision tokens. fused: [R, M, h, w, D], SAM-2's map per prompt, before the connector.
    """

    vision: jax.Array | None
    fused: jax.Array | None


def _as_its_dtype_says(method):
    """float32 computes in float32: by default matrix units round its factors to bfloat16 (TPU) or TF32 (GPU)."""

    @functools.wraps(method)
    def run(self, *args):
        if self.numerics.compute != "float32":
            return method(self, *args)
        with jax.default_matmul_precision("highest"):
            return method(self, *args)

    return run


class Virtue(nnx.Module):
    """The embedder of arXiv 2510.00523. `towers` is frozen in the published recipe; `embed` holds all that trains."""

    def __init__(self, config: VirtueConfig, *, numerics: Numerics, rngs: nnx.Rngs):
        self.numerics = numerics
        self.sam2 = Sam2(config.sam2, numerics=numerics, rngs=rngs)
        self.connector = Connector(config, numerics=numerics, rngs=rngs)
        self.vision = QwenVision(config.vision, numerics=numerics, rngs=rngs)
        self.text = QwenText(config.text, numerics=numerics, rngs=rngs)
        if config.adapter is not None:
            adapt(self.text, config.adapter, numerics=numerics, rngs=rngs)

    def towers(self, batch: Batch) -> TowerOutputs:
        """Runs each image once through both towers and each prompt once through SAM-2's two-way transformer."""
        vision = fused = None
        if batch.patches is not None:
            rows = batch.patches.shape[0]
            tokens = self.vision_rows(*map(_flat, (batch.patches, batch.patch_yx, batch.patch_segments)))
            vision = constrain(tokens.reshape(rows, -1, tokens.shape[-1]), ROWS)
        if batch.sam_images is not None:
            fused = self.fuse_prompts(batch, self.image_maps(_flat(batch.sam_images)))
        return TowerOutputs(vision, fused)

    @_as_its_dtype_says
    def vision_rows(self, patches, patch_yx, patch_segments):
        """Vision tokens [N, P/4, hidden] of patches[N, P, 588] in rows of any number of images; see `QwenVision`."""
        patches = _normalised(patches, CLIP_MEAN, CLIP_STD, repeat=patches.shape[-1] // len(CLIP_MEAN))
        return self.vision(*(constrain(x, EVERY) for x in (patches, patch_yx, patch_segments)))

    @_as_its_dtype_says
    def image_maps(self, sam_images):
        """SAM-2's map [N, h, w, D] of each image of sam_images[N, S, S, 3]."""
        return self.sam2.encode_image(constrain(_normalised(sam_images, IMAGENET_MEAN, IMAGENET_STD), EVERY))

    @_as_its_dtype_says
    def fuse_prompts(self, batch: Batch, maps):
        """[R, M, h, w, D]: the prompts of the rows, each seen on its image's map; maps[R * I, h, w, D] row by row."""
        rows, prompts = batch.prompt_labels.shape[:2]
        maps = constrain(maps.reshape(rows, len(maps) // rows, *maps.shape[1:]), ROWS)
        maps = jnp.take_along_axis(maps, batch.prompt_image[:, :, None, None, None], axis=1)
        labels = _flat(batch.prompt_labels)
        has_mask = masks = None
        if batch.prompt_masks is not None:
            has_mask, masks = _flat(batch.has_mask), _flat(batch.prompt_masks)
        sparse, dense = self.sam2.encode_prompts(_flat(batch.prompt_points), labels, has_mask, masks)
        fused, _ = self.sam2.fuse(_flat(maps), sparse, labels, dense)
        return fused.reshape(rows, prompts, *fused.shape[1:])

    def embed(self, batch: Batch, towers: TowerOutputs, keys: jax.Array | None = None):
        """float32[R, K, hidden]: each example's last-token hidden state, L2-normalised; undefined where not `valid`.

        keys: key[R], dropout keys of the adapter, one per row; None = no dropout.
        """
        return self.embed_together([(batch, towers, keys)])[0]

    @_as_its_dtype_says
    def embed_together(self, groups: Sequence[tuple[Batch, TowerOutputs, jax.Array | None]]) -> list[jax.Array]:
        """`embed` of several row groups with equally many slots, in one run of the language model."""
        inputs, positions, segments, keys = [], [], [], []
        for batch, towers, key in groups:
            inputs.append(self.splice(batch, towers))
            positions.append(batch.positions)
            segments.append(batch.segments)
            keys.append(key)
        joined = None if keys[0] is None else join_rows(keys)
        hidden = self.text(join_rows(inputs), join_rows(positions), join_rows(segments), joined)
        parts = split_rows(hidden, [len(x) for x in inputs])
        return [_pooled(part, batch.pool) for part, (batch, _, _) in zip(parts, groups, strict=True)]

    def splice(self, batch: Batch, towers: TowerOutputs):
        """The language model's input [R, L, hidden]: words, vision tokens and segmentation tokens in their slots."""
        inputs = self.text.embed(batch.tokens)
        if towers.vision is not None:
            inputs = _place(inputs, towers.vision, batch.vision_slot)
        if towers.fused is not None:
            rows, prompts = towers.fused.shape[:2]
            tokens = self.connector(_flat(towers.fused))
            inputs = _place(inputs, tokens.reshape(rows, prompts * tokens.shape[1], -1), batch.prompt_slot)
        return inputs

    def __call__(self, batch: Batch, keys: jax.Array | None = None):
        """`embed` of `towers`: float32[R, K, hidden]."""
        return self.embed(batch, self.towers(batch), keys)


def _pooled(hidden, pool):
    taken = jnp.take_along_axis(hidden, pool[:, :, None], axis=1).astype(jnp.float32)
    return taken / jnp.linalg.norm(taken, axis=-1, keepdims=True)


def _normalised(x, mean, std, repeat: int = 1):
    """Grey levels uint8[..., colours * repeat], as images may travel, as the towers take them ; floats are already."""
    if x.dtype != jnp.uint8:
        return x
    mean, std = (jnp.repeat(jnp.array(values, jnp.float32), repeat) for values in (mean, std))
    return (x.astype(jnp.float32) / 255 - mean) / std


def _flat(x):
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])  # not -1: there may be no prompt point at all


def _place(inputs, tokens, slot):
    """inputs[R, L, H] with tokens[R, T, H] put where slot[R, L] >= 0 names one."""
    taken = jnp.take_along_axis(tokens, jnp.maximum(slot, 0)[:, :, None], axis=1)
    return jnp.where(slot[:, :, None] >= 0, taken.astype(inputs.dtype), inputs)
