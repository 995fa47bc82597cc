"""SAM-2's image trunk, Hiera (arXiv 2306.00989): four stages of windowed and global attention, the map halved between.

Letters: B batch, H, W map, C channels.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from virtue_jax.config import HieraConfig, Numerics
from virtue_jax.models import initial
from virtue_jax.models.layers import LayerNorm, Linear, Mlp, branch_scope, gelu, rematerialised, scan, stack
from virtue_jax.ops.attention import attention
from virtue_jax.ops.heads import project_heads, project_length_last
from virtue_jax.ops.resize import resize_bicubic
from virtue_jax.ops.window_attention import window_attention
from virtue_jax.ops.windows import max_pool

GLOBAL = 0  # window size that means the whole map, as in SAM-2
STAGES = 4
PATCH_STRIDE, PATCH_KERNEL = 4, 7


class PatchEmbed(nnx.Module):
    """The 7x7 convolution of stride 4 that opens the trunk; kernel[7, 7, 3, C]."""

    def __init__(self, dim: int, *, numerics: Numerics, rngs: nnx.Rngs):
        shape, dtype = (PATCH_KERNEL, PATCH_KERNEL, 3, dim), jnp.dtype(numerics.params)
        self.kernel = initial.kernel(PATCH_KERNEL**2 * 3, shape, dtype, rngs)
        self.bias = initial.constant(0.0, (dim,), dtype)
        self.numerics = numerics

    def __call__(self, images):
        """images[B, S, S, 3] -> [B, S/4, S/4, C]."""
        dtype = jnp.dtype(self.numerics.compute)
        pad = PATCH_KERNEL // 2
        y = lax.conv_general_dilated(
            images.astype(dtype),
            self.kernel[...].astype(dtype),
            window_strides=(PATCH_STRIDE, PATCH_STRIDE),
            padding=((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + self.bias[...].astype(dtype)


class WindowAttention(nnx.Module):
    """Attention inside windows; where the stage changes, each window's queries are max-pooled 2x2."""

    def __init__(self, d_in: int, d_out: int, heads: int, pool: bool, *, numerics: Numerics, rngs: nnx.Rngs):
        self.qkv = Linear(d_in, 3 * d_out, numerics=numerics, rngs=rngs)
        self.proj = Linear(d_out, d_out, numerics=numerics, rngs=rngs)
        self.heads = heads
        self.pool = pool
        self.numerics = numerics

    def __call__(self, x_BHWC, window: int):
        dtype, backend = jnp.dtype(self.numerics.compute), self.numerics.attention
        x = x_BHWC.astype(dtype)
        qkv, proj = (
            (linear.kernel[...].astype(dtype), linear.bias[...].astype(dtype)) for linear in (self.qkv, self.proj)
        )
        if window != GLOBAL:
            return window_attention(x, qkv, proj, heads=self.heads, window=window, pooled=self.pool, backend=backend)
        B, H, W, C = x.shape
        project = project_length_last if backend == "splash" else project_heads
        q, k, v = project(x.reshape(B, H * W, C), *qkv, self.heads)
        return self.proj(attention(q, k, v, backend=backend).reshape(B, H, W, -1))


class Block(nnx.Module):
    """A pre-norm transformer block over a map. With `d_out` != `d_in` it opens a stage: wider, and the map halved."""

    def __init__(self, d_in: int, d_out: int, heads: int, *, numerics: Numerics, rngs: nnx.Rngs):
        self.opens_stage = d_in != d_out
        self.norm1 = LayerNorm(d_in, numerics=numerics)
        self.attn = WindowAttention(d_in, d_out, heads, self.opens_stage, numerics=numerics, rngs=rngs)
        self.norm2 = LayerNorm(d_out, numerics=numerics)
        self.mlp = Mlp(d_out, 4 * d_out, gelu, numerics=numerics, rngs=rngs)
        if self.opens_stage:
            self.proj = Linear(d_in, d_out, numerics=numerics, rngs=rngs)

    def __call__(self, x_BHWC, windows: tuple[int, ...], choice=0):
        """windows: of all blocks that this program is for; choice: the number among its sizes (ascending, each once) of
        this block's own, traced or not."""
        normed = self.norm1(x_BHWC)
        # SAM-2's shortcut into a new stage starts from the normed input.
        shortcut = max_pool(self.proj(normed)) if self.opens_stage else x_BHWC
        x_BHWC = shortcut + self._attend(normed, windows, choice)
        return x_BHWC + self.mlp(self.norm2(x_BHWC))

    def _attend(self, x_BHWC, windows: tuple[int, ...], choice):
        if len(set(windows)) == 1:
            return self.attn(x_BHWC, windows[0])
        # Parameters go through the branches as arguments: a module may not be changed inside of one.
        graphdef, state = nnx.split(self.attn)

        def branch(window: int):
            def run(state, x):
                with jax.named_scope(branch_scope(windows.count(window), len(windows))):
                    return nnx.merge(graphdef, state)(x, window)

            return run

        return lax.switch(choice, [branch(window) for window in sorted(set(windows))], state, x_BHWC)


class Stage(nnx.Module):
    """Blocks of one width: the first on its own, the rest alike and stacked. `windows`: one size per block."""

    def __init__(self, d_in: int, d_out: int, heads: int, windows: tuple[int, ...], *, numerics, rngs: nnx.Rngs):
        self.first = Block(d_in, d_out, heads, numerics=numerics, rngs=rngs)
        if len(windows) > 1:

            def make(rngs):
                return Block(d_out, d_out, heads, numerics=numerics, rngs=rngs)

            self.rest = stack(make, len(windows) - 1, rngs)
        self.windows = windows
        self.numerics = numerics

    def __call__(self, x):
        remat, rest = self.numerics.remat, self.windows[1:]

        def first(x):
            return self.first(x, self.windows[:1])

        x = rematerialised(first, remat)(x)
        if not rest:
            return x
        # One loop over blocks of several window sizes, which only attention asks for: every further loop takes the TPU
        # compiler half a minute.
        sizes = sorted(set(rest))
        choices = jnp.array([sizes.index(window) for window in rest], jnp.int32)
        return scan(lambda block, x, choice: block(x, rest, choice), self.rest, x, choices, remat=remat)


class Hiera(nnx.Module):
    """images[B, S, S, 3] -> four maps: stride 4, 8, 16, 32, widths `config.stage_dims`."""

    def __init__(self, config: HieraConfig, *, numerics: Numerics, rngs: nnx.Rngs):
        windows = block_windows(config)
        dtype = jnp.dtype(numerics.params)
        side, dims = config.window_spec[0], config.stage_dims
        self.patch_embed = PatchEmbed(config.embed_dim, numerics=numerics, rngs=rngs)
        background = (*config.window_pos_embed_bkg_spatial_size, config.embed_dim)
        self.pos_embed = initial.truncated_normal(0.02, background, dtype, rngs)
        self.pos_embed_window = initial.truncated_normal(0.02, (side, side, config.embed_dim), dtype, rngs)
        self.stages = nnx.List(
            Stage(dims[max(s - 1, 0)], dims[s], config.num_heads * 2**s, windows[s], numerics=numerics, rngs=rngs)
            for s in range(STAGES)
        )

    def position_embedding(self, height: int, width: int):
        """float32[height, width, C]: the background map stretched over the image plus the window's map repeated."""
        window = self.pos_embed_window[...].astype(jnp.float32)
        if height % window.shape[0] or width % window.shape[1]:
            raise ValueError(
                f"Hiera: a {height}x{width} map is not a whole number of first-stage windows of {window.shape[0]}; "
                f"image_size must be a multiple of {PATCH_STRIDE * window.shape[0]}"
            )
        tiled = jnp.tile(window, (height // window.shape[0], width // window.shape[1], 1))
        return resize_bicubic(self.pos_embed[...], height, width) + tiled

    def __call__(self, images):
        x = self.patch_embed(images)
        x = x + self.position_embedding(*x.shape[1:3]).astype(x.dtype)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def block_windows(config: HieraConfig) -> list[tuple[int, ...]]:
    """Window size of every block, stage by stage; `GLOBAL` where a block attends over the whole map.

    The block that opens a stage still has the window of the stage before it (the published code's lag by one).

    Raises:
        ValueError: a geometry that SAM-2 itself cannot run.
    """
    if len(config.stages) != STAGES or len(config.window_spec) != STAGES or min(config.stages) < 1:
        raise ValueError(f"Hiera: expected {STAGES} stages of at least one block and {STAGES} windows, got {config}")
    depth = sum(config.stages)
    beyond = [i for i in config.global_att_blocks if not 0 <= i < depth]
    if beyond:
        raise ValueError(f"Hiera: global_att_blocks {beyond} do not exist, the trunk has blocks 0 .. {depth - 1}")
    windows, block = [], 0
    for s, count in enumerate(config.stages):
        sizes = [config.window_spec[max(s - 1, 0)]] + [config.window_spec[s]] * (count - 1)
        sizes = [GLOBAL if block + i in config.global_att_blocks else size for i, size in enumerate(sizes)]
        if s > 0 and sizes[0] == GLOBAL:
            raise ValueError(f"Hiera: block {block} opens stage {s + 1} and pools its windows, it cannot be global")
        if s > 0 and sizes[0] % 2:
            raise ValueError(f"Hiera: stage {s + 1} pools windows of {sizes[0]}, window_spec[{s - 1}] must be even")
        windows.append(tuple(sizes))
        block += count
    return windows
