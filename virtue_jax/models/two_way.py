"""The two-way transformer of SAM-2's mask decoder: prompt tokens and image places attend to each other."""

import jax
import jax.numpy as jnp
from flax import nnx

from virtue_jax.config import Numerics, Sam2Config
from virtue_jax.models import initial
from virtue_jax.models.layers import LayerNorm, Linear, Mlp
from virtue_jax.ops.attention import attention

NORM_EPS = 1e-5  # PyTorch's default, unlike the rest of SAM-2
ALIGNED_GAIN = 3.0  # sharp enough that an untrained point token looks at its own place and not at the whole image
MARK_GAIN = 3.0  # and marks that place on the image


class DownscaledAttention(nnx.Module):
    """Multi-head attention whose inner width is `d_inner`.

    aligned: queries and keys start from one projection, so that an untrained prompt token and the image places at its
    position already match (both carry the same Fourier features), where two random projections would not.
    """

    def __init__(
        self,
        dim: int,
        d_inner: int,
        heads: int,
        *,
        numerics: Numerics,
        rngs: nnx.Rngs,
        aligned: bool = False,
        out_gain: float = 1.0,
    ):
        if d_inner % heads:
            raise ValueError(f"two-way transformer: {heads} heads do not divide the inner width {d_inner}")
        gain = ALIGNED_GAIN if aligned else 1.0
        self.q_proj = Linear(dim, d_inner, numerics=numerics, rngs=rngs, gain=gain)
        self.k_proj = Linear(dim, d_inner, numerics=numerics, rngs=rngs, gain=gain)
        if aligned:
            self.k_proj.kernel = initial.copy(self.q_proj.kernel, "q_proj.kernel")
        self.v_proj = Linear(dim, d_inner, numerics=numerics, rngs=rngs)
        self.out_proj = Linear(d_inner, dim, numerics=numerics, rngs=rngs, gain=out_gain)
        self.heads = heads

    def __call__(self, q, k, v, q_segments=None, kv_segments=None):
        # One side is a dozen tokens: far under a kernel's block.
        y = attention(
            self._heads(self.q_proj(q)),
            self._heads(self.k_proj(k)),
            self._heads(self.v_proj(v)),
            q_segments=q_segments,
            kv_segments=kv_segments,
            backend="xla",
        )
        return self.out_proj(y.reshape(*y.shape[:2], -1))

    def _heads(self, x):
        return x.reshape(*x.shape[:2], self.heads, -1)


class TwoWayBlock(nnx.Module):
    """Tokens among themselves, tokens to image, MLP on tokens, image to tokens; each followed by its norm.

    The first block's self-attention sees no positions and has no residual, as in SAM.
    """

    def __init__(self, config: Sam2Config, is_first: bool, *, numerics: Numerics, rngs: nnx.Rngs):
        dim, heads = config.d_model, config.decoder_heads
        inner = dim // config.attention_downsample_rate
        self.self_attn = DownscaledAttention(dim, dim, heads, numerics=numerics, rngs=rngs)
        self.cross_attn_token_to_image = DownscaledAttention(
            dim, inner, heads, numerics=numerics, rngs=rngs, aligned=True
        )
        self.mlp = Mlp(dim, config.decoder_mlp_dim, jax.nn.relu, numerics=numerics, rngs=rngs)
        self.cross_attn_image_to_token = DownscaledAttention(
            dim, inner, heads, numerics=numerics, rngs=rngs, aligned=True, out_gain=MARK_GAIN
        )
        self.norm1 = LayerNorm(dim, numerics=numerics, eps=NORM_EPS)
        self.norm2 = LayerNorm(dim, numerics=numerics, eps=NORM_EPS)
        self.norm3 = LayerNorm(dim, numerics=numerics, eps=NORM_EPS)
        self.norm4 = LayerNorm(dim, numerics=numerics, eps=NORM_EPS)
        self.is_first = is_first

    def __call__(self, tokens, image, token_pe, image_pe, token_segments, image_segments):
        if self.is_first:
            tokens = self.self_attn(tokens, tokens, tokens, token_segments, token_segments)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens, token_segments, token_segments)
        tokens = self.norm1(tokens)
        tokens = tokens + self.cross_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        seen = self.cross_attn_image_to_token(
            image + image_pe, tokens + token_pe, tokens, image_segments, token_segments
        )
        return tokens, self.norm4(image + seen)


class TwoWayTransformer(nnx.Module):
    """(tokens[B, T, D], image[B, P, D]) -> both updated.

    token_pe[B, T, D] and image_pe[P, D] are added wherever queries and keys are made. token_segments int32[B, T]:
    1 = a token, 0 = nothing stands there; what comes out at 0 is finite and means nothing.
    """

    def __init__(self, config: Sam2Config, *, numerics: Numerics, rngs: nnx.Rngs):
        dim, inner = config.d_model, config.d_model // config.attention_downsample_rate
        self.layers = nnx.List(
            TwoWayBlock(config, i == 0, numerics=numerics, rngs=rngs) for i in range(config.decoder_depth)
        )
        self.final_attn_token_to_image = DownscaledAttention(
            dim, inner, config.decoder_heads, numerics=numerics, rngs=rngs, aligned=True
        )
        self.norm_final_attn = LayerNorm(dim, numerics=numerics, eps=NORM_EPS)

    def __call__(self, tokens, image, token_pe, image_pe, token_segments):
        image_segments = jnp.ones(image.shape[:2], jnp.int32)
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe, token_segments, image_segments)
        tokens = tokens + self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens), image


class MaskDecoder(nnx.Module):
    """The part of SAM-2's mask decoder that VIRTUE taps: its own tokens and the two-way transformer.

    What comes after (upscaling, hypernetworks, heads) makes masks, which an embedder does not need.
    """

    def __init__(self, config: Sam2Config, *, numerics: Numerics, rngs: nnx.Rngs):
        dim, dtype = config.d_model, jnp.dtype(numerics.params)
        self.obj_score_token = initial.normal(1.0, (1, dim), dtype, rngs)
        self.iou_token = initial.normal(1.0, (1, dim), dtype, rngs)
        self.mask_tokens = initial.normal(1.0, (config.num_mask_tokens, dim), dtype, rngs)
        self.transformer = TwoWayTransformer(config, numerics=numerics, rngs=rngs)

    def tokens(self, sparse):
        """[B, T, D]: the decoder's own tokens (object score, IoU, masks), then the prompt's sparse[B, N, D]."""
        own = jnp.concatenate([self.obj_score_token[...], self.iou_token[...], self.mask_tokens[...]])
        own = jnp.broadcast_to(own.astype(sparse.dtype), (sparse.shape[0], *own.shape))
        return jnp.concatenate([own, sparse], axis=1)

    def __call__(self, image, image_pe, sparse, present):
        """image[B, h, w, D], dense embedding added, and present bool[B, N] -> (map[B, h, w, D], tokens[B, T, D])."""
        tokens = self.tokens(sparse)
        own = tokens.shape[1] - sparse.shape[1]
        segments = jnp.pad(present.astype(jnp.int32), ((0, 0), (own, 0)), constant_values=1)
        dim = image.shape[-1]
        places = image.reshape(image.shape[0], -1, dim)
        tokens, fused = self.transformer(tokens, places, tokens, image_pe.reshape(-1, dim), segments)
        return fused.reshape(image.shape), tokens
