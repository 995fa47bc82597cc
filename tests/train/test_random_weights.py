"""Untrained values: the distributions that the model's own constructors draw from, wherever the parts lie."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.stats import kstest, norm, truncnorm

from virtue_jax.config import HieraConfig, Numerics, Sam2Config, TextConfig, VirtueConfig, VisionConfig
from virtue_jax.models.initial import Initial
from virtue_jax.models.parameters import abstract_virtue, parameters
from virtue_jax.models.virtue import Virtue
from virtue_jax.train.random_weights import random_weights, values
from virtue_jax.train.survival.digest import digest

KEY = np.uint64(7)
WHOLE = (slice(None), slice(None), slice(None))
SHAPE = (3, 40, 50)


@pytest.fixture(scope="module")
def tiny_virtue() -> VirtueConfig:
    hiera = HieraConfig(8, 1, (1, 2, 2, 1), (4,), window_spec=(8, 4, 4, 4), window_pos_embed_bkg_spatial_size=(4, 4))
    sam2 = Sam2Config(hiera, d_model=16, image_size=64, decoder_heads=2, decoder_mlp_dim=32, mask_in_chans=8)
    text = TextConfig(300, 32, 64, 2, 4, 2, (1, 1, 2), 1, 2, 3)
    return VirtueConfig(sam2, VisionConfig(2, 32, 2, 32), text)


def placed(shapes, sharding=None):
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for path, x in shapes.items()}


@pytest.mark.parametrize(
    "initial, expected",
    [
        (Initial("normal", 0.3), norm(scale=0.3)),
        (Initial("truncated_normal", 0.3), truncnorm(-2, 2, scale=0.3)),
    ],
)
def test_values_have_their_distribution_and_are_independent(initial, expected):
    drawn = values(initial, KEY, (2, 300, 500), WHOLE).reshape(-1)
    assert kstest(drawn, expected.cdf).pvalue > 0.01
    for lag in (1, 500, 150_000):
        assert abs(np.corrcoef(drawn[:-lag], drawn[lag:])[0, 1]) < 0.01
    other = values(initial, np.uint64(8), (2, 300, 500), WHOLE).reshape(-1)
    assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.01


@pytest.mark.parametrize(
    "index", [(slice(1, 2), slice(10, 30), slice(None)), (slice(None), slice(None), slice(25, 50))]
)
def test_a_part_is_that_part_of_the_whole(index, monkeypatch):
    monkeypatch.setattr("virtue_jax.train.random_weights._AT_ONCE", 100)  # rows one after another
    for initial in (Initial("normal", 1.0), Initial("truncated_normal", 2.0), Initial("constant", 1.0)):
        assert np.array_equal(values(initial, KEY, SHAPE, index), values(initial, KEY, SHAPE, WHOLE)[index])


@pytest.mark.slow  # compiles the constructor
def test_every_parameter_of_a_model_has_the_spread_that_its_constructor_gives_it(tiny_virtue):
    numerics = Numerics()
    constructed = jax.jit(lambda: parameters(Virtue(tiny_virtue, numerics=numerics, rngs=nnx.Rngs(0))))()
    drawn = random_weights(tiny_virtue, numerics, 0, placed(constructed))
    assert set(drawn) == set(constructed)
    for path, x in constructed.items():
        ours, theirs = (np.asarray(a, np.float64) for a in (drawn[path], x))
        assert ours.shape == theirs.shape and drawn[path].dtype == x.dtype, path
        if theirs.std() == 0:
            assert np.array_equal(ours, theirs), path
        elif theirs.size > 30:  # 5 standard errors of a difference of deviations
            assert abs(ours.std() / theirs.std() - 1) < 5 / np.sqrt(theirs.size), path
            assert abs(ours.mean()) < 5 * theirs.std() / np.sqrt(theirs.size), path


def test_queries_and_keys_that_start_alike_do_and_others_do_not(tiny_virtue):
    drawn = random_weights(tiny_virtue, Numerics(), 0, placed(parameters(abstract_virtue(tiny_virtue, Numerics()))))
    pairs = {path: path.replace(".q_proj.", ".k_proj.") for path in drawn if path.endswith(".q_proj.kernel")}
    alike = {path for path, other in pairs.items() if np.array_equal(drawn[path], drawn[other])}
    assert alike == {path for path in pairs if "cross_attn" in path or "final_attn" in path}


def test_values_are_a_function_of_model_and_seed_on_every_mesh(tiny_virtue):
    shapes = parameters(abstract_virtue(tiny_virtue, Numerics()))
    kernels = {path: x for path, x in shapes.items() if path.startswith("text.layers.mlp")}
    devices = np.asarray(jax.devices())
    mesh = Mesh(devices, ("x",))
    split = NamedSharding(mesh, PartitionSpec(None, "x"))
    whole = random_weights(tiny_virtue, Numerics(), 0, placed(kernels))
    assert digest(whole) == digest(random_weights(tiny_virtue, Numerics(), 0, placed(kernels, split)))
    assert digest(whole) != digest(random_weights(tiny_virtue, Numerics(), 1, placed(kernels)))


def test_values_take_the_dtype_that_is_wanted(tiny_virtue):
    shapes = parameters(abstract_virtue(tiny_virtue, Numerics()))
    rough = {"text.embed_tokens.embedding": shapes["text.embed_tokens.embedding"]}
    fine = random_weights(tiny_virtue, Numerics(), 0, placed(rough))
    rough = {path: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for path, x in rough.items()}
    numerics = dataclasses.replace(Numerics(), params="bfloat16")
    found = random_weights(tiny_virtue, numerics, 0, placed(rough))
    for path, x in found.items():
        assert x.dtype == jnp.bfloat16 and jnp.array_equal(x, fine[path].astype(jnp.bfloat16))
