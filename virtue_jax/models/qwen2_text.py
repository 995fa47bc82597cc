"""Qwen2-VL's language model (arXiv 2409.12191) as an encoder: embeddings in, hidden states out, no head, no cache."""

import jax
import jax.numpy as jnp
from flax import nnx

from virtue_jax.config import Numerics, TextConfig
from virtue_jax.models import initial
from virtue_jax.models.layers import Linear, RMSNorm, scan, stack
from virtue_jax.ops.attention import attention
from virtue_jax.ops.rotary import mrope_angles, rotate
from virtue_jax.parallel.constrain import ROWS, constrain


class Embedding(nnx.Module):
    """Rows of a table, one per token id; embedding[V, H]."""

    def __init__(self, size: int, dim: int, *, numerics: Numerics, rngs: nnx.Rngs):
        self.embedding = initial.normal(dim**-0.5, (size, dim), jnp.dtype(numerics.params), rngs)
        self.numerics = numerics

    def __call__(self, tokens):
        return self.embedding[...][tokens].astype(jnp.dtype(self.numerics.compute))


class TextAttention(nnx.Module):
    """Grouped-query attention; q, k and v have biases, o has none."""

    def __init__(self, config: TextConfig, *, numerics: Numerics, rngs: nnx.Rngs):
        hidden, size = config.hidden_size, config.head_dim
        self.q_proj = Linear(hidden, config.num_attention_heads * size, numerics=numerics, rngs=rngs)
        self.k_proj = Linear(hidden, config.num_key_value_heads * size, numerics=numerics, rngs=rngs)
        self.v_proj = Linear(hidden, config.num_key_value_heads * size, numerics=numerics, rngs=rngs)
        self.o_proj = Linear(config.num_attention_heads * size, hidden, numerics=numerics, rngs=rngs, use_bias=False)
        self.head_dim = size
        self.numerics = numerics

    def __call__(self, x, angles, segments, keys):
        def heads(projection, key):
            return projection(x, key).reshape(*x.shape[:2], -1, self.head_dim)

        q = rotate(heads(self.q_proj, keys[0]), angles)
        k = rotate(heads(self.k_proj, keys[1]), angles)
        v = heads(self.v_proj, keys[2])
        backend = self.numerics.attention
        out = attention(q, k, v, causal=True, q_segments=segments, kv_segments=segments, backend=backend)
        return self.o_proj(out.reshape(*x.shape[:2], -1), keys[3])


class TextMlp(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: TextConfig, *, numerics: Numerics, rngs: nnx.Rngs):
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(hidden, inner, numerics=numerics, rngs=rngs, use_bias=False)
        self.up_proj = Linear(hidden, inner, numerics=numerics, rngs=rngs, use_bias=False)
        self.down_proj = Linear(inner, hidden, numerics=numerics, rngs=rngs, use_bias=False, last=True)

    def __call__(self, x, keys):
        gated = jax.nn.silu(self.gate_proj(x, keys[0])) * self.up_proj(x, keys[1])
        return self.down_proj(gated, keys[2])


class TextLayer(nnx.Module):
    """Pre-norm attention and MLP, each with a residual connection."""

    def __init__(self, config: TextConfig, *, numerics: Numerics, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(config.hidden_size, numerics=numerics, eps=config.rms_norm_eps)
        self.self_attn = TextAttention(config, numerics=numerics, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, numerics=numerics, eps=config.rms_norm_eps)
        self.mlp = TextMlp(config, numerics=numerics, rngs=rngs)

    def __call__(self, x, angles, segments, keys):
        # Keys of their own for every linear layer: PEFT's adapters each draw a dropout mask.
        keys = [None] * 7 if keys is None else _split(keys, 7)
        x = constrain(x, ROWS)
        x = x + self.self_attn(self.input_layernorm(x), angles, segments, keys[:4])
        return x + self.mlp(self.post_attention_layernorm(x), keys[4:])


class QwenText(nnx.Module):
    """The whole language model. Examples of a packed row are told apart by segments and read causally."""

    def __init__(self, config: TextConfig, *, numerics: Numerics, rngs: nnx.Rngs):
        _check_heads(config)
        self.config = config
        self.numerics = numerics
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, numerics=numerics, rngs=rngs)
        self.layers = stack(lambda r: TextLayer(config, numerics=numerics, rngs=r), config.num_hidden_layers, rngs)
        self.norm = RMSNorm(config.hidden_size, numerics=numerics, eps=config.rms_norm_eps)

    def embed(self, tokens):
        """Word embeddings [R, L, H] of int tokens[R, L]."""
        return self.embed_tokens(tokens)

    def __call__(self, inputs_embeds, positions, segments, keys=None):
        """Hidden states [R, L, H] after the final norm, in `numerics.compute`; at padding they mean nothing.

        Args:
            inputs_embeds: float[R, L, H].
            positions: int[R, 3, L], rotary positions (temporal, height, width).
            segments: int[R, L], 1 + example number in the row, 0 = padding.
            keys: key[R], dropout keys of the adapters (`models/lora.py`), one per row, so that what a row drops does
                not depend on how rows are grouped; None = no dropout.

        Raises:
            ValueError: shapes that do not fit the config or one another.
        """
        return self.norm(self._run(inputs_embeds, positions, segments, keys))

    def hidden_states(self, inputs_embeds, positions, segments, keys=None):
        """[layers + 1, R, L, H] as `transformers` has them: inputs, all layers' outputs but the last, final norm's."""
        last, inputs = self._run(inputs_embeds, positions, segments, keys, collect=True)
        return jnp.concatenate([inputs, self.norm(last)[None]])

    def _run(self, inputs_embeds, positions, segments, keys, collect=False):
        config = self.config
        rows, length, hidden = inputs_embeds.shape
        expected = (rows, 3, length), (rows, length), config.hidden_size
        if (positions.shape, segments.shape, hidden) != expected:
            raise ValueError(
                f"inputs_embeds {inputs_embeds.shape}, positions {positions.shape}, segments {segments.shape}: "
                f"expected [rows, length, {config.hidden_size}], [rows, 3, length], [rows, length]"
            )
        angles = mrope_angles(positions, config.head_dim, config.rope_theta, config.mrope_section)
        keys = None if keys is None else _split(keys, config.num_hidden_layers)

        def apply(layer, x, layer_keys):
            return layer(x, angles, segments, layer_keys)

        x = inputs_embeds.astype(jnp.dtype(self.numerics.compute))
        return scan(apply, self.layers, x, keys, remat=self.numerics.remat, collect=collect)


def _split(keys, count: int):
    """key[count, R]: `count` new keys from each row's."""
    return jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys)


def _check_heads(config: TextConfig) -> None:
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    if config.hidden_size % heads or heads % key_heads:
        raise ValueError(
            f"text config: hidden_size {config.hidden_size} must be a multiple of num_attention_heads {heads}, "
            f"and that a multiple of num_key_value_heads {key_heads}"
        )
