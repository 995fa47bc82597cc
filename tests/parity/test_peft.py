"""LoRA and DoRA against PEFT on one linear layer: forward, dropout, gradients, merged weights, initialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from peft import LoraConfig, get_peft_model

from virtue_jax.config import AdapterConfig, Numerics
from virtue_jax.models import lora
from virtue_jax.models.layers import Linear
from virtue_jax.models.lora import AdaptedLinear, merged_kernel

pytestmark = pytest.mark.parity

IN, OUT, TOKENS = 48, 40, 6
SETTINGS = [(1, 1.0), (4, 8.0), (8, 64.0), (16, 16.0)]
# Relative to the largest value compared: 48 terms per sum, a few roundings each.
TOLERANCE = 3e-6


class FixedDropout(torch.nn.Module):
    """Dropout with a mask that both sides know."""

    def __init__(self, keep: np.ndarray, rate: float):
        super().__init__()
        self.factor = torch.from_numpy(keep / np.float32(1 - rate))

    def forward(self, x):
        return x * self.factor


def peft_layer(rank: int, alpha: float, dora: bool, bias: bool, dropout: float = 0.0):
    """A PEFT-adapted torch.nn.Linear with random weights everywhere, B and the magnitudes moved off their start."""
    torch.manual_seed(rank)
    model = torch.nn.Sequential()
    model.add_module("proj", torch.nn.Linear(IN, OUT, bias=bias))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        use_dora=dora,
        lora_dropout=dropout,
        target_modules=["proj"],
        init_lora_weights="gaussian",
    )
    peft_model = get_peft_model(model, config)
    layer = peft_model.base_model.model.proj
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(std=0.3)
        if dora:
            layer.lora_magnitude_vector["default"].weight.mul_(1 + 0.3 * torch.rand(OUT))
    return peft_model, layer


def our_layer(layer, config: AdapterConfig) -> AdaptedLinear:
    bias = layer.base_layer.bias
    numerics = Numerics()
    base = Linear(IN, OUT, numerics=numerics, rngs=nnx.Rngs(0), use_bias=bias is not None)
    base.kernel = nnx.Param(_jax(layer.base_layer.weight).T)
    if bias is not None:
        base.bias = nnx.Param(_jax(bias))
    ours = AdaptedLinear(base, config, numerics=numerics, rngs=nnx.Rngs(0))
    ours.lora_a = nnx.LoRAParam(_jax(layer.lora_A["default"].weight).T)
    ours.lora_b = nnx.LoRAParam(_jax(layer.lora_B["default"].weight).T)
    if config.use_dora:
        ours.magnitude = nnx.LoRAParam(_jax(layer.lora_magnitude_vector["default"].weight))
    return ours


def _jax(tensor):
    # jax takes an aligned array as it lies in memory and computes later, while PEFT merges into its weights in place.
    return jnp.asarray(tensor.detach().numpy().copy())


def assert_close(got, expected):
    expected = expected.detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def outputs_and_gradients(ours: AdaptedLinear, x, weights, key):
    """y, and the gradients of sum(y * weights) with respect to the adapter, the frozen parameters and x."""
    graphdef, state = nnx.split(ours)

    def loss(state, x):
        y = nnx.merge(graphdef, state)(x, key)
        return jnp.sum(y * weights), y

    (_, y), (grads, grad_x) = jax.value_and_grad(loss, (0, 1), has_aux=True)(state, x)
    return y, grads, grad_x


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(("rank", "alpha"), SETTINGS)
def test_forward_and_gradients(monkeypatch, rank, alpha, dora, bias, dropout):
    _, layer = peft_layer(rank, alpha, dora, bias, dropout)
    config = AdapterConfig(rank=rank, alpha=alpha, dropout=dropout, use_dora=dora, targets=("proj",))
    rng = np.random.default_rng(rank)
    x, weights = (rng.standard_normal((TOKENS, n)).astype(np.float32) for n in (IN, OUT))
    key = None
    if dropout:
        keep = (rng.random((TOKENS, IN)) > dropout).astype(np.float32)
        layer.lora_dropout["default"] = FixedDropout(keep, dropout)
        monkeypatch.setattr(lora, "_drop", lambda x, rate, keys: x * (keep / np.float32(1 - rate)))
        key = jax.random.split(jax.random.key(0), TOKENS)
    theirs_x = torch.from_numpy(x).requires_grad_()
    theirs = layer.train()(theirs_x)
    (theirs * torch.from_numpy(weights)).sum().backward()

    y, grads, grad_x = outputs_and_gradients(our_layer(layer, config), x, weights, key)
    assert_close(y, theirs)
    assert_close(grad_x, theirs_x.grad)
    assert_close(grads.lora_a[...].T, layer.lora_A["default"].weight.grad)
    assert_close(grads.lora_b[...].T, layer.lora_B["default"].weight.grad)
    if dora:
        assert_close(grads.magnitude[...], layer.lora_magnitude_vector["default"].weight.grad)


@pytest.mark.parametrize("dora", [False, True])
def test_without_a_key_nothing_is_dropped_as_in_evaluation(dora):
    _, layer = peft_layer(8, 64.0, dora, bias=True, dropout=0.4)
    config = AdapterConfig(dropout=0.4, use_dora=dora, targets=("proj",))
    x = np.random.default_rng(0).standard_normal((TOKENS, IN)).astype(np.float32)
    assert_close(our_layer(layer, config)(x), layer.eval()(torch.from_numpy(x)))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(("rank", "alpha"), SETTINGS)
def test_merged_weights(rank, alpha, dora):
    peft_model, layer = peft_layer(rank, alpha, dora, bias=True)
    config = AdapterConfig(rank=rank, alpha=alpha, use_dora=dora, targets=("proj",))
    ours = merged_kernel(our_layer(layer, config))
    assert_close(ours.T, peft_model.merge_and_unload().proj.weight)


def test_a_fresh_adapter_is_peft_s_gaussian_one():
    rank = 16
    model = torch.nn.Sequential()
    model.add_module("proj", torch.nn.Linear(IN, 1024))
    config = LoraConfig(r=rank, lora_alpha=32, use_dora=True, target_modules=["proj"], init_lora_weights="gaussian")
    theirs = get_peft_model(model, config).base_model.model.proj
    base = Linear(IN, 1024, numerics=Numerics(), rngs=nnx.Rngs(0))
    base.kernel = nnx.Param(_jax(theirs.base_layer.weight).T)
    ours = AdaptedLinear(base, AdapterConfig(rank=rank, alpha=32), numerics=Numerics(), rngs=nnx.Rngs(0))
    assert_close(ours.magnitude[...], theirs.lora_magnitude_vector["default"].weight)
    assert_close(ours.lora_b[...], torch.zeros(rank, 1024))
    # 768 draws each: the standard deviation is known to 2.6 %.
    for a in (ours.lora_a[...], theirs.lora_A["default"].weight.detach().numpy()):
        assert abs(float(np.std(a)) * rank - 1) < 0.1
        assert abs(float(np.mean(a)) * rank) < 0.15
