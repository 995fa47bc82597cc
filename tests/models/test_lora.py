"""Adapters: which layers they adapt, what they compute, how they drop out, merge and unmerge. PEFT: tests/parity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from virtue_jax.config import AdapterConfig, Numerics, TextConfig
from virtue_jax.models import lora
from virtue_jax.models.layers import Linear
from virtue_jax.models.lora import (
    AdaptedLinear,
    adapt,
    adapted_sum,
    hold_norms,
    merge_adapter,
    unmerge_adapter,
)
from virtue_jax.models.parameters import parameters
from virtue_jax.models.qwen2_text import QwenText

TEXT = TextConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    mrope_section=(1, 1, 2),
    image_token_id=1,
    vision_start_token_id=2,
    vision_end_token_id=3,
)
DORA = AdapterConfig()
LORA = AdapterConfig(use_dora=False)
PATHS = [
    "layers.mlp.down_proj",
    "layers.self_attn.k_proj",
    "layers.self_attn.o_proj",
    "layers.self_attn.q_proj",
    "layers.self_attn.v_proj",
]


def _text(config: AdapterConfig | None, numerics=Numerics(), moved=True) -> QwenText:  # noqa: B008
    """A tiny language model; `moved`: with an adapter that has left its starting point."""
    text = QwenText(TEXT, numerics=numerics, rngs=nnx.Rngs(0))
    if config is not None:
        expected = [path for path in PATHS if path.split(".")[-1] in config.targets]
        assert adapt(text, config, numerics=numerics, rngs=nnx.Rngs(1)) == expected
    if config is not None and moved:
        for i, layer in enumerate(_adapted(text)):
            b = 0.05 * jax.random.normal(jax.random.key(i), layer.lora_b.shape)
            layer.lora_b = nnx.LoRAParam(b.astype(layer.lora_b.dtype))
            if layer.magnitude is not None:
                layer.magnitude = nnx.LoRAParam(layer.magnitude[...] * jnp.asarray(1.2, layer.magnitude.dtype))
    return text


def _adapted(text) -> list[AdaptedLinear]:
    return [m for _, m in nnx.iter_modules(text) if isinstance(m, AdaptedLinear)]


def _run(text, seed=None):
    """seed: of the dropout keys of the two rows; None = no dropout."""
    return _forward(*nnx.split(text), None if seed is None else jax.random.split(jax.random.key(seed), 2))


@functools.partial(jax.jit, static_argnums=0)
def _forward(graphdef, state, keys):
    inputs = jax.random.normal(jax.random.key(9), (2, 12, 32))
    positions = jnp.broadcast_to(jnp.arange(12), (2, 3, 12))
    return nnx.merge(graphdef, state)(inputs, positions, jnp.ones((2, 12), jnp.int32), keys)


@pytest.mark.parametrize("config", [DORA, LORA])
def test_a_fresh_adapter_changes_nothing(config):
    np.testing.assert_allclose(_run(_text(config, moved=False)), _run(_text(None)), atol=1e-5)


@pytest.mark.parametrize("config", [DORA, LORA])
def test_adapter_parameters_stand_beside_the_kernel_and_have_their_own_type(config):
    leaves = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(_text(config)))}
    adapter = {path for path, leaf in leaves.items() if type(leaf) is nnx.LoRAParam}
    parts = ("lora_a", "lora_b", "magnitude") if config.use_dora else ("lora_a", "lora_b")
    assert adapter == {f"{path}.{part}" for path in PATHS for part in parts}
    assert leaves["layers.mlp.down_proj.lora_a"].shape == (3, 48, 8)
    assert leaves["layers.mlp.down_proj.lora_b"].shape == (3, 8, 32)


def test_adapt_works_without_arrays():
    abstract = nnx.eval_shape(lambda: _text(DORA, moved=False))
    assert abstract.layers.self_attn.k_proj.magnitude.shape == (3, 16)
    assert isinstance(abstract.layers.self_attn.k_proj.kernel.get_value(), jax.ShapeDtypeStruct)


def test_a_target_that_matches_nothing_is_an_error_that_lists_what_exists():
    text = _text(None)
    before = nnx.state(text)
    with pytest.raises(ValueError, match=r"\['gate_up_proj', 'qkv_proj'\] match no linear layer.*down_proj, gate_proj"):
        adapt(
            text, AdapterConfig(targets=("q_proj", "gate_up_proj", "qkv_proj")), numerics=Numerics(), rngs=nnx.Rngs(0)
        )
    assert jax.tree.structure(nnx.state(text)) == jax.tree.structure(before)
    with pytest.raises(ValueError, match="match no linear layer"):
        adapt(text, AdapterConfig(targets=()), numerics=Numerics(), rngs=nnx.Rngs(0))


def test_a_second_adapter_and_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match=r"adapted already: layers\.self_attn\.q_proj"):
        adapt(_text(DORA), AdapterConfig(targets=("q_proj",)), numerics=Numerics(), rngs=nnx.Rngs(0))
    for config in (AdapterConfig(rank=0), AdapterConfig(dropout=1.0)):
        with pytest.raises(ValueError, match="rank"):
            adapt(_text(None), config, numerics=Numerics(), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("config", [DORA, LORA])
def test_merging_keeps_what_the_model_computes_and_unmerging_restores_every_bit(config):
    text = _text(config)
    adapted, before = _run(text), nnx.state(text)
    removed = merge_adapter(text)
    assert sorted(removed) == PATHS
    assert not _adapted(text)
    plain = _text(None)
    assert parameters(text).keys() == parameters(plain).keys()
    np.testing.assert_allclose(_run(text), adapted, atol=1e-5)
    assert np.abs(adapted - _run(plain)).max() > 0.1  # the adapter did something
    unmerge_adapter(text, removed)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), nnx.state(text), before))


def test_merging_needs_an_adapter_and_unmerging_the_merged_layers():
    with pytest.raises(ValueError, match="no adapted layer"):
        merge_adapter(_text(None))
    text = _text(DORA)
    removed = merge_adapter(_text(DORA))
    with pytest.raises(ValueError, match="is AdaptedLinear"):
        unmerge_adapter(text, removed)
    with pytest.raises(ValueError, match="is nothing"):
        unmerge_adapter(text.layers.mlp, removed)


def test_merged_kernels_are_formed_one_layer_at_a_time():
    text = nnx.eval_shape(lambda: _text(DORA, moved=False))
    layer = text.layers.mlp.down_proj
    shapes = {"kernel": (28, 896, 512), "lora_a": (28, 896, 8), "lora_b": (28, 8, 512), "magnitude": (28, 512)}
    for name, shape in shapes.items():
        leaf = getattr(layer, name)
        setattr(layer, name, leaf.replace(jax.ShapeDtypeStruct(shape, jnp.float32)))
    graphdef, state = nnx.split(layer)

    def merged(state):
        holder = nnx.Dict(proj=nnx.merge(graphdef, state))
        merge_adapter(holder)
        return holder.proj.kernel[...]

    compiled = jax.jit(merged).lower(state).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 28 * 896 * 512 * 4 / 4  # a quarter of the stack


def test_dropout_masks_differ_between_layers_and_modules(monkeypatch):
    drawn = []
    monkeypatch.setattr("virtue_jax.models.lora._drop", lambda x, rate, keys: _record(drawn, keys, x))
    jax.clear_caches()
    _run(_text(DORA), seed=0)
    jax.effects_barrier()
    jax.clear_caches()
    assert len(drawn) == len(set(drawn)) == 3 * 5 * 2


@pytest.mark.slow
def test_what_a_row_drops_does_not_depend_on_the_rows_beside_it():
    text = _text(DORA)
    graphdef, state = nnx.split(text)
    keys = jax.random.split(jax.random.key(4), 3)
    inputs = jax.random.normal(jax.random.key(9), (3, 12, 32))
    positions, segments = jnp.broadcast_to(jnp.arange(12), (3, 3, 12)), jnp.ones((3, 12), jnp.int32)

    @jax.jit
    def run(state, *arrays):
        return nnx.merge(graphdef, state)(*arrays)

    whole = run(state, inputs, positions, segments, keys)
    for r in range(3):
        alone = run(state, *(x[r : r + 1] for x in (inputs, positions, segments, keys)))
        np.testing.assert_allclose(whole[r], alone[0], atol=1e-5)


@pytest.mark.parametrize("stacked", [pytest.param(True, marks=pytest.mark.slow), False])
def test_held_norms_change_neither_outputs_nor_gradients(stacked):
    text = _text(DORA)
    module = text if stacked else _one_layer()
    inputs = jax.random.normal(jax.random.key(1), (2, 12, 32))

    def loss(state, hold):
        merged = nnx.merge(graphdef, state)
        if hold:
            hold_norms(merged)
        return (jnp.square(_run(merged)) if stacked else jnp.square(merged.proj(inputs))).sum()

    graphdef, state = nnx.split(module)
    plain, held = (jax.value_and_grad(loss)(state, hold) for hold in (False, True))
    np.testing.assert_allclose(held[0], plain[0], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(plain[1]), jax.tree.leaves(held[1]), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * np.abs(a).max())


class _OneLayer(nnx.Module):
    def __init__(self):
        self.proj = Linear(32, 16, numerics=Numerics(), rngs=nnx.Rngs(0))


def _one_layer() -> nnx.Module:
    return _one_layer_of(Numerics())


def _one_layer_of(numerics: Numerics) -> nnx.Module:
    module = _OneLayer()
    adapt(module, AdapterConfig(targets=("proj",)), numerics=numerics, rngs=nnx.Rngs(1))
    return module


def _record(drawn: list, keys, x):
    jax.debug.callback(lambda data: drawn.extend(map(tuple, data.tolist())), jax.random.key_data(keys))
    return x


@pytest.mark.parametrize("config", [DORA, LORA])
def test_dropout_follows_its_key_and_needs_one(config):
    text = _text(config)
    same, again, other = (_run(text, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(same, again)
    assert np.abs(same - other).max() > 1e-3
    assert np.abs(same - _run(text)).max() > 1e-3
    no_dropout = _text(AdapterConfig(dropout=0.0, use_dora=config.use_dora))
    np.testing.assert_allclose(_run(no_dropout, seed=0), _run(text), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dropped", ["peft", "branch"])
@pytest.mark.parametrize("remat", ["layer", "outputs", "dots"])
def test_remat_repeats_the_same_dropout(remat, dropped):
    config = AdapterConfig(targets=("q_proj", "down_proj"))
    plain, remat = (_text(config, Numerics(remat=name, dora_dropout=dropped)) for name in ("none", remat))

    def gradient(text):
        graphdef, state = nnx.split(text)
        return jax.grad(lambda s: _run(nnx.merge(graphdef, s), seed=3).sum())(state)

    pairs = zip(jax.tree.leaves(gradient(plain)), jax.tree.leaves(gradient(remat)), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max())


def test_dropout_on_the_branch_leaves_the_frozen_product_whole():
    layers = {name: _one_layer_of(Numerics(dora_dropout=name)) for name in ("peft", "branch")}
    x, keys = jax.random.normal(jax.random.key(2), (3, 5, 32)), jax.random.split(jax.random.key(3), 3)
    for layer in layers.values():  # without its branch, a layer differs by dropout in the frozen product alone
        layer.proj.lora_b[...] = jnp.zeros_like(layer.proj.lora_b[...])
        layer.proj.magnitude[...] = 2 * layer.proj.magnitude[...]
    np.testing.assert_allclose(layers["branch"].proj(x, keys), layers["branch"].proj(x), rtol=1e-5, atol=1e-5)
    assert np.abs(layers["peft"].proj(x, keys) - layers["peft"].proj(x)).max() > 1e-2


def test_dropout_keeps_its_rate_and_its_mean():
    x = jnp.ones((64, 4096), jnp.float32)
    dropped = np.asarray(lora._drop(x, 0.1, jax.random.split(jax.random.key(0), 64)))
    assert (dropped == 0).mean() == pytest.approx(0.1, abs=0.003)  # five standard deviations
    assert dropped.mean() == pytest.approx(1.0, abs=0.004)
    assert lora._drop(x.astype(jnp.bfloat16), 0.1, jax.random.split(jax.random.key(0), 64)).dtype == jnp.bfloat16


def test_column_norm_keeps_its_digits_where_the_adapter_opposes_the_weight():
    """Why W + s A B is formed: its norm by expansion loses all digits here, its norm as formed about three."""
    rng = np.random.default_rng(0)
    config = AdapterConfig(rank=4, alpha=8.0, targets=("proj",))
    a, b = rng.standard_normal((64, 4)).astype(np.float32), rng.standard_normal((4, 32)).astype(np.float32)
    kernel = (-config.scale * a @ b + 1e-3 * rng.standard_normal((64, 32))).astype(np.float32)
    layer = AdaptedLinear(
        Linear(64, 32, numerics=Numerics(), rngs=nnx.Rngs(0)), config, numerics=Numerics(), rngs=nnx.Rngs(0)
    )
    layer.kernel, layer.lora_a, layer.lora_b = nnx.Param(kernel), nnx.LoRAParam(a), nnx.LoRAParam(b)
    exact = np.linalg.norm(kernel.astype(np.float64) + config.scale * a.astype(np.float64) @ b, axis=0)
    formed = np.linalg.norm(adapted_sum(layer), axis=0)
    s = np.float32(config.scale)
    square = (kernel**2).sum(0) + 2 * s * ((a.T @ kernel) * b).sum(0) + s**2 * (b * (a.T @ a @ b)).sum(0)
    expanded = np.sqrt(np.maximum(square, 0))
    assert np.abs(formed / exact - 1).max() < 1e-3
    assert np.abs(expanded / exact - 1).max() > 0.1


def test_a_column_of_zeros_stays_zero():
    text = _text(None)
    kernel = text.layers.mlp.down_proj.kernel[...].at[:, :, 5].set(0)
    text.layers.mlp.down_proj.kernel = nnx.Param(kernel)
    adapt(text, DORA, numerics=Numerics(), rngs=nnx.Rngs(0))
    assert np.isfinite(_run(text)).all()
