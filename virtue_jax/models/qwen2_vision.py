"""Qwen2-VL's vision tower (arXiv 2409.12191): patches of any number of images in a packed row -> vision tokens."""

import jax
import jax.numpy as jnp
from flax import nnx

from virtue_jax.config import Numerics, VisionConfig
from virtue_jax.models import initial
from virtue_jax.models.layers import LayerNorm, Linear, gelu, scan, stack
from virtue_jax.ops.attention import attention
from virtue_jax.ops.heads import project_heads, project_length_last
from virtue_jax.ops.rotary import patch_angles, rotate, rotate_columns


class PatchEmbed(nnx.Module):
    """The tower's Conv3d, whose stride equals its kernel, as a matrix product; kernel[T, patch_dim, D], no bias.

    The T frames of an image are copies of one another, so that they meet the sum of the kernel over T.
    """

    def __init__(self, config: VisionConfig, *, numerics: Numerics, rngs: nnx.Rngs):
        frames, size = config.temporal_patch_size, config.patch_dim
        shape = (frames, size, config.embed_dim)
        self.kernel = initial.kernel(frames * size, shape, jnp.dtype(numerics.params), rngs)
        self.numerics = numerics

    def __call__(self, patches):
        dtype = jnp.dtype(self.numerics.compute)
        kernel = self.kernel[...].astype(jnp.float32).sum(0).astype(dtype)
        return patches.astype(dtype) @ kernel


class VisionAttention(nnx.Module):
    """Every patch sees all patches of its own image."""

    def __init__(self, config: VisionConfig, *, numerics: Numerics, rngs: nnx.Rngs):
        dim = config.embed_dim
        self.qkv = Linear(dim, 3 * dim, numerics=numerics, rngs=rngs)
        self.proj = Linear(dim, dim, numerics=numerics, rngs=rngs)
        self.num_heads = config.num_heads
        self.numerics = numerics

    def __call__(self, x, angles, segments):
        backend, dtype = self.numerics.attention, jnp.dtype(self.numerics.compute)
        project = self._length_last if backend == "splash" else self._heads_last
        q, k, v = project(x.astype(dtype), *(p[...].astype(dtype) for p in (self.qkv.kernel, self.qkv.bias)), angles)
        out = attention(q, k, v, q_segments=segments, kv_segments=segments, backend=backend)
        return self.proj(out.reshape(x.shape))

    def _heads_last(self, x, kernel, bias, angles):
        q, k, v = project_heads(x, kernel, bias, self.num_heads)
        return rotate(q, angles), rotate(k, angles), v

    def _length_last(self, x, kernel, bias, angles):
        def turn(part, y):
            return rotate_columns(y, angles) if part < 2 else y

        return project_length_last(x, kernel, bias, self.num_heads, turn)


class VisionMlp(nnx.Module):
    """Linear - QuickGELU - Linear; QuickGELU(x) = x * sigmoid(1.702 x)."""

    def __init__(self, config: VisionConfig, *, numerics: Numerics, rngs: nnx.Rngs):
        hidden = int(config.embed_dim * config.mlp_ratio)
        self.fc1 = Linear(config.embed_dim, hidden, numerics=numerics, rngs=rngs)
        self.fc2 = Linear(hidden, config.embed_dim, numerics=numerics, rngs=rngs)

    def __call__(self, x):
        x = self.fc1(x)
        return self.fc2(x * jax.nn.sigmoid(1.702 * x))


class VisionBlock(nnx.Module):
    """Pre-norm attention and MLP, each with a residual connection."""

    def __init__(self, config: VisionConfig, *, numerics: Numerics, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(config.embed_dim, numerics=numerics)
        self.attn = VisionAttention(config, numerics=numerics, rngs=rngs)
        self.norm2 = LayerNorm(config.embed_dim, numerics=numerics)
        self.mlp = VisionMlp(config, numerics=numerics, rngs=rngs)

    def __call__(self, x, angles, segments):
        x = x + self.attn(self.norm1(x), angles, segments)
        return x + self.mlp(self.norm2(x))


class Merger(nnx.Module):
    """Four neighbouring patches (2 x 2, consecutive in the row) become one token of the language model's width."""

    def __init__(self, config: VisionConfig, *, numerics: Numerics, rngs: nnx.Rngs):
        self.merged = config.spatial_merge_size**2 * config.embed_dim
        self.ln_q = LayerNorm(config.embed_dim, numerics=numerics)
        self.fc1 = Linear(self.merged, self.merged, numerics=numerics, rngs=rngs)
        self.fc2 = Linear(self.merged, config.hidden_size, numerics=numerics, rngs=rngs)

    def __call__(self, x):
        return self.fc2(gelu(self.fc1(self.ln_q(x).reshape(x.shape[0], -1, self.merged))))


class QwenVision(nnx.Module):
    """The whole tower. Images of a row are told apart by segments, so that no image sees another or the padding."""

    def __init__(self, config: VisionConfig, *, numerics: Numerics, rngs: nnx.Rngs):
        self.config = config
        self.numerics = numerics
        self.patch_embed = PatchEmbed(config, numerics=numerics, rngs=rngs)
        self.blocks = stack(lambda r: VisionBlock(config, numerics=numerics, rngs=r), config.depth, rngs)
        self.merger = Merger(config, numerics=numerics, rngs=rngs)

    def __call__(self, patches, patch_yx, patch_segments):
        """Vision tokens [R, P/4, hidden] in `numerics.compute`, in the order of the patches.

        Args:
            patches: float[R, P, 588], CLIP-normalised pixels (channel, y, x) of one frame, P a multiple of 4. The four
                patches of a vision token stand together, as Qwen2-VL's image processor orders them.
            patch_yx: int[R, P, 2], row and column of the patch in its image.
            patch_segments: int[R, P], 1 + image number, 0 = padding (whose tokens are finite and mean nothing).

        Raises:
            ValueError: shapes that do not fit the config or one another.
        """
        return self.merger(self.encode(patches, patch_yx, patch_segments))

    def encode(self, patches, patch_yx, patch_segments):
        """[R, P, D]: the output of the last block, before the merger. Arguments as in `__call__`."""
        self._check(patches, patch_yx, patch_segments)
        angles = patch_angles(patch_yx, self.config.embed_dim // self.config.num_heads)

        def apply(block, x, _):
            return block(x, angles, patch_segments)

        return scan(apply, self.blocks, self.patch_embed(patches), remat=self.numerics.remat)

    def _check(self, patches, patch_yx, patch_segments):
        merge = self.config.spatial_merge_size**2
        rows, length, dim = patches.shape
        if dim != self.config.patch_dim or length % merge:
            expected = f"[rows, multiple of {merge}, {self.config.patch_dim}]"
            raise ValueError(f"patches {patches.shape}: expected {expected}")
        if patch_yx.shape != (rows, length, 2) or patch_segments.shape != (rows, length):
            raise ValueError(
                f"patch_yx {patch_yx.shape}, patch_segments {patch_segments.shape}: "
                f"expected {(rows, length, 2)} and {(rows, length)} as patches {patches.shape}"
            )
