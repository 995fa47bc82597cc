"""FLOPs of SAM-2's image encoder (`train/cost/flops.py` has the convention)."""

from collections.abc import Iterator
from typing import NamedTuple

from virtue_jax.config import Sam2Config
from virtue_jax.models.hiera import GLOBAL, PATCH_KERNEL, PATCH_STRIDE, block_windows
from virtue_jax.ops.splash import LANES
from virtue_jax.ops.window_kernel import plan


class Products(NamedTuple):
    """FLOPs of one forward pass of a part: `linear` by the path of the weight, `attention` over whole squares."""

    linear: dict[str, float]
    attention: float


class Block(NamedTuple):
    """A block of the trunk over a map of side x side; `opens` a stage: wider, and its queries pooled."""

    path: str
    side: int
    window: int
    d_in: int
    d_out: int
    heads: int
    opens: bool

    @property
    def out(self) -> int:
        """Side of the map that it gives."""
        return self.side // 2 if self.opens else self.side

    @property
    def is_global(self) -> bool:
        return self.window == GLOBAL

    def attention(self) -> tuple[float, float, float]:
        """FLOPs of an image: queries, keys and values (of whole windows); the squares; the output."""
        padded = self.side if self.is_global else -(-self.side // self.window) * self.window
        keys = self.side**2 if self.is_global else self.window**2
        queries = padded**2 // (4 if self.opens else 1)
        qkv, proj = 2.0 * padded**2 * self.d_in * 3 * self.d_out, 2.0 * self.out**2 * self.d_out**2
        return qkv, 4.0 * queries * keys * self.d_out, proj

    def by_kernel(self, dtype: str) -> float | None:
        """FLOPs of an image where a TPU's kernel for windows computes them all, whole tiles of tokens and of heads;
        None where none does."""
        if self.is_global:
            return None
        shape = (1, self.side, self.side, self.d_in)
        planned = plan(shape, self.d_out, self.heads, self.window, self.opens, dtype)
        return None if planned is None else planned.flops(1, self.side)


def trunk_blocks(config: Sam2Config) -> Iterator[Block]:
    """In their order."""
    hiera, dims = config.hiera, config.hiera.stage_dims
    side = config.image_size // PATCH_STRIDE
    for s, windows in enumerate(block_windows(hiera)):
        for i, window in enumerate(windows):
            opens = s > 0 and i == 0
            path = f"sam2.trunk.stages.{s}.{'rest' if i else 'first'}"
            block = Block(path, side, window, dims[s - 1] if opens else dims[s], dims[s], hiera.num_heads * 2**s, opens)
            yield block
            side = block.out


def image_encoder(config: Sam2Config, images: int) -> Products:
    """Of one forward pass over so many images."""
    dims, linear, attention, maps = config.hiera.stage_dims, {}, 0.0, {}
    side = config.image_size // PATCH_STRIDE
    linear["sam2.trunk.patch_embed.kernel"] = 2.0 * side**2 * PATCH_KERNEL**2 * 3 * dims[0]
    for block in trunk_blocks(config):
        qkv, squares, proj = block.attention()
        hidden = 2.0 * block.out**2 * 4 * block.d_out**2
        products = {"attn.qkv": qkv, "attn.proj": proj, "mlp.fc1": hidden, "mlp.fc2": hidden}
        if block.opens:
            products["proj"] = 2.0 * block.side**2 * block.d_in * block.d_out
        for name, flops in products.items():
            key = f"{block.path}.{name}.kernel"
            linear[key] = linear.get(key, 0.0) + flops
        attention += squares
        maps[dims.index(block.d_out)] = block.out
    # Only what the stride-16 level needs of the neck: its own convolution and, coming from above, the coarsest.
    needed = (2, 3) if 2 in config.fpn_top_down_levels else (2,)
    for level in needed:
        linear[f"sam2.neck.convs.{3 - level}.kernel"] = 2.0 * maps[level] ** 2 * dims[level] * config.d_model
    return Products({path: images * flops for path, flops in linear.items()}, images * attention)


def tpu_overhead(config: Sam2Config, images: int, dtype: str, runs: int, trained: bool) -> float:
    """FLOPs that TPU kernels execute beyond `image_encoder`'s: whole tiles of tokens and of heads in each of `runs`
    forward passes; where the trunk trains, windows once more, whose backward pass keeps nothing of the forward."""
    extra = 0.0
    for block in trunk_blocks(config):
        qkv, squares, proj = block.attention()
        kernel, size = block.by_kernel(dtype), block.d_out // block.heads
        if kernel is not None:
            extra += runs * (kernel - qkv - squares - proj) + trained * (qkv + squares + proj)
        elif block.is_global:
            extra += runs * squares * (-(-size // LANES) * LANES / size - 1)
    return images * extra
