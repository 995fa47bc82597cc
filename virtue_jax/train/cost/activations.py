"""Bytes of one micro-batch on one device: what the language model keeps for its backward pass, and what is worked on.

What is kept is counted, not guessed (`kept_by_layers`); the rest follows from the widest arrays of a layer.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx

from virtue_jax.batch import RowShape
from virtue_jax.config import Numerics, VirtueConfig
from virtue_jax.models.hiera import PATCH_STRIDE
from virtue_jax.models.lora import adapt
from virtue_jax.models.parameters import dotted
from virtue_jax.models.qwen2_text import QwenText
from virtue_jax.models.virtue import towers_are_frozen
from virtue_jax.ops.xla_attention import LOGITS_BYTES
from virtue_jax.parallel.mesh import ROWS, TENSOR

Shapes = Mapping[str, jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class Run:
    """What memory depends on besides the row groups. trainable, frozen: abstract parameters, with their shardings or
    without (then whole on each device). mesh: axis sizes. pixels: dtype of images in a batch."""

    virtue: VirtueConfig
    numerics: Numerics
    trainable: Shapes
    frozen: Shapes
    mesh: Mapping[str, int]
    pixels: str = "float32"

    @property
    def row_shards(self) -> int:
        return math.prod(self.mesh.get(axis, 1) for axis in ROWS)

    @property
    def frozen_towers(self) -> bool:
        return towers_are_frozen(self.trainable)


def array_bytes(arrays: Iterable[jax.ShapeDtypeStruct]) -> int:
    """Bytes of abstract arrays on one device."""
    return sum(math.prod(local_shape(x)) * x.dtype.itemsize for x in arrays)


def local_shape(x: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    return x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)


def activations(run: Run, shape: RowShape, rows: int) -> int:
    """What one micro-batch keeps of the language model from its forward to its backward pass."""
    kept, _ = _kept(run, run.numerics, shape, rows)
    width, places = run.virtue.text.hidden_size, rows * shape.slots
    connector = rows * shape.prompts * run.virtue.segmentation_tokens * (2 * run.virtue.sam2.d_model + width)
    return kept + (3 * places * width + 4 * connector) * itemsize(run)


def _kept(run: Run, numerics: Numerics, shape: RowShape, rows: int) -> tuple[int, int]:
    trained = frozenset(path for path in run.trainable if path.startswith("text."))
    return kept_by_layers(run.virtue, numerics, trained, shape.slots, rows, run.mesh.get(TENSOR, 1))


def layer_work(run: Run, shape: RowShape, rows: int) -> int:
    """What the backward pass of one layer holds at a time: all that a layer without remat keeps, and as much again."""
    _, layer = _kept(run, replace(run.numerics, remat="none"), shape, rows)
    inner = run.virtue.text.intermediate_size // run.mesh.get(TENSOR, 1)
    recomputed = layer if run.numerics.remat in ("layer", "outputs", "dots") else 0
    return recomputed + 4 * rows * shape.slots * inner * itemsize(run) + _attention_work(run, shape, rows)


def _attention_work(run: Run, shape: RowShape, rows: int) -> int:
    """Float32 arrays: a block's logits, or the query heads' shares of their key head's gradients."""
    heads = run.virtue.text.num_attention_heads // run.mesh.get(TENSOR, 1)
    if run.numerics.attention == "triton":
        shared = run.virtue.text.num_attention_heads > run.virtue.text.num_key_value_heads
        return shared * 2 * 4 * rows * heads * run.virtue.text.head_dim * shape.slots
    if run.numerics.attention != "xla":
        return 0
    return 3 * min(LOGITS_BYTES, 4 * rows * heads * shape.slots**2)


def gathered_layer(run: Run) -> int:
    """Split weights are gathered whole a layer at a time, the next one's while one is used; DoRA's column norms form
    the largest kernel in float32."""
    layers = run.virtue.text.num_hidden_layers
    split = [x for path, x in run.frozen.items() if path.startswith("text.layers.") and local_shape(x) != x.shape]
    gathered = 2 * sum(math.prod(x.shape) * x.dtype.itemsize for x in split) // layers // run.mesh.get(TENSOR, 1)
    cast = [
        x
        for path, x in run.frozen.items()
        if path.startswith("text.layers.") and x.dtype != jnp.dtype(run.numerics.compute)
    ]
    return gathered + sum(math.prod(local_shape(x)) for x in cast) // layers * itemsize(run)


def tower_work(run: Run, shape: RowShape, rows: int) -> int:
    """The widest moment of the towers' forward passes over one micro-batch, their rows shared by all devices."""
    return max(_vision_work(run, shape, rows), _sam_work(run, shape, rows))


def _vision_work(run: Run, shape: RowShape, rows: int) -> int:
    config, size = run.virtue.vision, itemsize(run)
    patches = rows * shape.vision_rows * shape.patches // run.mesh.get(TENSOR, 1)
    hidden = int(config.embed_dim * config.mlp_ratio)
    logits = 4 * patches * shape.patches * config.num_heads
    blocks = 3 * min(LOGITS_BYTES, logits) if run.numerics.attention == "xla" else 0
    attention = patches * 6 * config.embed_dim * size + blocks
    mlp = patches * (3 * config.embed_dim + 2 * hidden) * size
    return patches * (4 * config.patch_dim + 4 * config.embed_dim) + max(attention, mlp)


def _sam_work(run: Run, shape: RowShape, rows: int) -> int:
    config, size = run.virtue.sam2, itemsize(run)
    images = -(-rows * shape.images // run.mesh.get(TENSOR, 1))
    first = images * (config.image_size // PATCH_STRIDE) ** 2 * config.hiera.embed_dim
    window = images * (config.image_size // PATCH_STRIDE) ** 2 * config.hiera.num_heads * config.hiera.window_spec[0]
    trunk = (first * 14 + window * config.hiera.window_spec[0] * 2) * size + 4 * images * config.image_size**2 * 3
    places = rows * shape.prompts * config.embedding_size**2
    return max(trunk, places * config.d_model * 6 * size)


def trained_towers(run: Run, shape: RowShape, rows: int) -> int:
    """Towers that train keep every block's intermediate maps; with remat, its input."""
    vision, sam2, size = run.virtue.vision, run.virtue.sam2, itemsize(run)
    numbers = 1 if run.numerics.remat in ("layer", "outputs") else 16
    patches = rows * shape.vision_rows * shape.patches * vision.embed_dim * vision.depth
    places = rows * shape.images * (sam2.image_size // PATCH_STRIDE) ** 2
    blocks = sum(count * sam2.hiera.embed_dim / 2**s for s, count in enumerate(sam2.hiera.stages))
    prompts = rows * shape.prompts * sam2.embedding_size**2 * sam2.d_model * sam2.decoder_depth
    return int(numbers * (patches + places * blocks + prompts)) * size + tower_work(run, shape, rows)


def itemsize(run: Run) -> int:
    return jnp.dtype(run.numerics.compute).itemsize


@functools.lru_cache(maxsize=256)
def kept_by_layers(
    virtue: VirtueConfig, numerics: Numerics, trained: frozenset[str], slots: int, rows: int, tensor: int = 1
) -> tuple[int, int]:
    """(all layers, one layer): bytes that are carried from forward to backward for `rows` rows of `slots` slots.

    The model is traced at its width with few layers; weights are left out. trained: paths ("text. ...") of what trains.
    tensor: over how many devices what has heads or inner units is split.
    """
    # A number of layers that no other leading dimension has tells the arrays of all layers from the rest.
    layers = rows + 1
    remat = replace(numerics, remat="none") if numerics.remat == "auto" else numerics
    graphdef, params = _abstract_text(virtue, remat, layers)

    def residuals(chosen, rest, x, positions, segments, keys):
        def encode(chosen, x):
            state = nnx.from_flat_state([(path, leaf) for path, leaf in {**rest, **chosen}.items()])
            return nnx.merge(graphdef, state)(x, positions, segments, keys)

        return jax.vjp(encode, chosen, x)[1]

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    hidden = virtue.text.hidden_size
    carried = jax.eval_shape(
        residuals,
        {path: leaf for path, leaf in params.items() if f"text.{dotted(path)}" in trained},
        {path: leaf for path, leaf in params.items() if f"text.{dotted(path)}" not in trained},
        jax.ShapeDtypeStruct((rows, slots, hidden), remat.compute),
        jax.ShapeDtypeStruct((rows, 3, slots), jnp.int32),
        jax.ShapeDtypeStruct((rows, slots), jnp.int32),
        keys if virtue.adapter is not None and virtue.adapter.dropout else None,
    )
    weights = {leaf.get_value().shape for leaf in params.values()}
    kept = [x for x in jax.tree.leaves(carried) if x.shape not in weights]
    return _sizes([x for x in kept if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)], virtue, layers, tensor)


def _sizes(kept: Iterable[jax.ShapeDtypeStruct], virtue: VirtueConfig, layers: int, tensor: int) -> tuple[int, int]:
    """(all of the model's layers, one layer) of what a model of `layers` layers keeps."""
    stacked = once = 0
    for x in kept:
        whole = x.ndim <= 4 and x.shape[-1:] == (virtue.text.hidden_size,)
        size = x.size * x.dtype.itemsize // (1 if whole else tensor)
        if x.shape[:1] == (layers,):
            stacked += size // layers
        else:
            once += size
    return stacked * virtue.text.num_hidden_layers + once, stacked


def _abstract_text(virtue: VirtueConfig, numerics: Numerics, layers: int):
    """(graphdef, {path: abstract parameter}) of the language model with so many layers and no vocabulary."""
    text = replace(virtue.text, num_hidden_layers=layers, vocab_size=1)

    def make():
        module = QwenText(text, numerics=numerics, rngs=nnx.Rngs(0))
        if virtue.adapter is not None:
            adapt(module, virtue.adapter, numerics=numerics, rngs=nnx.Rngs(0))
        return module

    graphdef, state = nnx.split(nnx.eval_shape(make))
    return graphdef, dict(nnx.to_flat_state(state))
