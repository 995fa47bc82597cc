"""The parts of SAM-2.1 (arXiv 2408.00714) that VIRTUE runs: image encoder, prompt encoder, two-way transformer."""

import jax.numpy as jnp
from flax import nnx

from virtue_jax.batch import NO_TOKEN
from virtue_jax.config import Numerics, Sam2Config
from virtue_jax.models import initial
from virtue_jax.models.fpn import FpnNeck
from virtue_jax.models.hiera import Hiera
from virtue_jax.models.prompt_encoder import PromptEncoder
from virtue_jax.models.two_way import MaskDecoder

SIDE_MULTIPLE = 64  # stride 16 of the decoder's map, times the connector's 4


class Sam2(nnx.Module):
    """One image, one prompt -> the map that VIRTUE's connector reads (`Sam2.fuse`).

    Arrays are channels-last; h = w = image_size / 16. Activations are in `numerics.compute`, norms and softmax in
    float32. `numerics.attention` is the backend of the trunk's global blocks; the rest is too short for a kernel.
    """

    def __init__(self, config: Sam2Config, *, numerics: Numerics, rngs: nnx.Rngs):
        if config.image_size < SIDE_MULTIPLE or config.image_size % SIDE_MULTIPLE:
            raise ValueError(f"SAM-2: image_size {config.image_size} must be a multiple of {SIDE_MULTIPLE}")
        dims = config.hiera.stage_dims
        self.trunk = Hiera(config.hiera, numerics=numerics, rngs=rngs)
        self.neck = FpnNeck(dims, config.d_model, config.fpn_top_down_levels, numerics=numerics, rngs=rngs)
        self.no_mem_embed = initial.truncated_normal(0.02, (config.d_model,), jnp.dtype(numerics.params), rngs)
        self.prompt_encoder = PromptEncoder(config, numerics=numerics, rngs=rngs)
        self.mask_decoder = MaskDecoder(config, numerics=numerics, rngs=rngs)
        self.config = config

    def encode_image(self, images):
        """images[B, S, S, 3], normalised -> [B, h, w, D]: the neck's stride-16 level plus `no_mem_embed`."""
        return self.image_features(images)["image_embed"]

    def image_features(self, images):
        """Everything the image encoder makes: `trunk`, four maps of stride 4 to 32; `fpn`, three of stride 4 to 16;
        `image_embed`, as `encode_image`. Under `jit` what is not used is not computed.
        """
        side = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (side, side, 3):
            raise ValueError(f"SAM-2: images {images.shape}, expected [B, {side}, {side}, 3] (config.image_size)")
        trunk = self.trunk(images)
        fpn = self.neck(trunk)
        return {"trunk": trunk, "fpn": fpn, "image_embed": fpn[2] + self.no_mem_embed[...].astype(fpn[2].dtype)}

    def encode_prompts(self, points, labels, has_mask=None, masks=None):
        """Visual prompts -> what the two-way transformer takes of them.

        Args:
            points: float[B, N, 2], (x, y) in SAM's frame of `image_size` pixels, before the half-pixel shift.
            labels: int[B, N]. 1 positive, 0 negative point, 2 top-left, 3 bottom-right corner of a box; NOT_A_POINT is
                SAM-2's own padding token; NO_TOKEN = nothing stands here. Points of the last two are not read.
            has_mask: bool[B], or None = every row has one.
            masks: float[B, 4h, 4w] mask logits, or None = no row has a mask.

        Returns:
            sparse[B, N, D], in the order given, and dense[B, h, w, D].
        """
        return self.prompt_encoder(points, labels, has_mask, masks)

    def fuse(self, image_embed, sparse, labels, dense):
        """image_embed[B, h, w, D], sparse[B, N, D], labels[B, N], dense[B, h, w, D] -> (map, tokens).

        map[B, h, w, D] is the image side of the two-way transformer, before the mask decoder's upscaling: VIRTUE's
        segmentation features (paper section 3). tokens[B, 2 + masks + N, D] is its other side, the decoder's own tokens
        first. Tokens labelled NO_TOKEN are no keys to anything.
        """
        positions = self.prompt_encoder.dense_positions()
        return self.mask_decoder(image_embed + dense, positions, sparse, labels != NO_TOKEN)
