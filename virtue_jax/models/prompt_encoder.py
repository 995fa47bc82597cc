"""SAM-2's prompt encoder: points, box corners and masks -> sparse tokens and a dense map."""

import math

import jax.numpy as jnp
from flax import nnx

from virtue_jax.batch import NOT_A_POINT
from virtue_jax.config import Numerics, Sam2Config
from virtue_jax.models import initial
from virtue_jax.models.connector import StridedConv
from virtue_jax.models.layers import LayerNorm, Linear, gelu

POINT_KINDS = 4  # negative point, positive point, top-left corner, bottom-right corner
MASK_GAIN = 3.0  # untrained: a mask's inside and outside differ by about as much as places of the image do


class MaskDownscaling(nnx.Module):
    """Mask logits at a quarter of SAM's input -> dense embedding at a sixteenth."""

    def __init__(self, config: Sam2Config, *, numerics: Numerics, rngs: nnx.Rngs):
        channels = config.mask_in_chans
        self.conv1 = StridedConv(1, channels // 4, 2, numerics=numerics, rngs=rngs)
        self.norm1 = LayerNorm(channels // 4, numerics=numerics)
        self.conv2 = StridedConv(channels // 4, channels, 2, numerics=numerics, rngs=rngs)
        self.norm2 = LayerNorm(channels, numerics=numerics)
        self.conv3 = Linear(channels, config.d_model, numerics=numerics, rngs=rngs, gain=MASK_GAIN)

    def __call__(self, masks):
        """masks[B, 4h, 4w] -> [B, h, w, D]."""
        x = gelu(self.norm1(self.conv1(masks[..., None])))
        return self.conv3(gelu(self.norm2(self.conv2(x))))


class PromptEncoder(nnx.Module):
    """See `Sam2.encode_prompts`, which this is; `dense_positions` serves the two-way transformer."""

    def __init__(self, config: Sam2Config, *, numerics: Numerics, rngs: nnx.Rngs):
        dim, dtype = config.d_model, jnp.dtype(numerics.params)
        # Frequencies of a phase: always float32, in bfloat16 they would move every position by whole pixels.
        self.positional_encoding_gaussian_matrix = initial.normal(1.0, (2, dim // 2), jnp.float32, rngs)
        self.point_embeddings = initial.normal(1.0, (POINT_KINDS, dim), dtype, rngs)
        self.not_a_point_embed = initial.normal(1.0, (dim,), dtype, rngs)
        # Small: it is added to every place alike, and what differs between places and prompts must stay visible.
        self.no_mask_embed = initial.normal(0.1, (dim,), dtype, rngs)
        self.mask_downscaling = MaskDownscaling(config, numerics=numerics, rngs=rngs)
        self.config = config
        self.numerics = numerics

    def __call__(self, points, labels, has_mask=None, masks=None):
        return self.sparse(points, labels), self.dense(points.shape[0], has_mask, masks)

    def sparse(self, points, labels):
        """points float32[B, N, 2] and labels int32[B, N] -> tokens [B, N, D]; zeros where nothing stands."""
        real = (labels >= 0)[..., None]
        centres = jnp.where(real, points.astype(jnp.float32) + 0.5, 0.0)
        kinds = jnp.take(self.point_embeddings[...].astype(jnp.float32), jnp.clip(labels, 0, POINT_KINDS - 1), axis=0)
        tokens = jnp.where(real, self._fourier(centres / self.config.image_size) + kinds, 0.0)
        padding = (labels == NOT_A_POINT)[..., None]
        tokens = jnp.where(padding, self.not_a_point_embed[...].astype(jnp.float32), tokens)
        return tokens.astype(jnp.dtype(self.numerics.compute))

    def dense(self, rows: int, has_mask=None, masks=None):
        """[B, h, w, D]: each row's downscaled mask, or `no_mask_embed` everywhere where it has none."""
        side = self.config.embedding_size
        no_mask = self.no_mask_embed[...].astype(jnp.dtype(self.numerics.compute))
        no_mask = jnp.broadcast_to(no_mask, (rows, side, side, no_mask.shape[0]))
        if masks is None:
            if has_mask is not None:
                raise ValueError("prompt encoder: has_mask without masks; give both, or masks alone, or neither")
            return no_mask
        expected = (rows, self.config.mask_size, self.config.mask_size)
        if masks.shape != expected:
            raise ValueError(f"prompt encoder: masks {masks.shape}, expected {expected} (a quarter of image_size)")
        embedded = self.mask_downscaling(masks)
        return embedded if has_mask is None else jnp.where(has_mask[:, None, None, None], embedded, no_mask)

    def dense_positions(self):
        """[h, w, D]: the position code of every place of the feature map, at its centre."""
        side = self.config.embedding_size
        centres = (jnp.arange(side, dtype=jnp.float32) + 0.5) / side
        y, x = jnp.meshgrid(centres, centres, indexing="ij")
        return self._fourier(jnp.stack([x, y], axis=-1)).astype(jnp.dtype(self.numerics.compute))

    def _fourier(self, coordinates):
        """Random Fourier features of (x, y) in 0..1, float32[..., D]."""
        matrix = self.positional_encoding_gaussian_matrix[...].astype(jnp.float32)
        centred = 2 * coordinates - 1
        # Written out: a matrix product of depth 2 would run in bfloat16 on a TPU.
        phase = 2 * math.pi * (centred[..., :1] * matrix[0] + centred[..., 1:] * matrix[1])
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)
