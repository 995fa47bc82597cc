"""SAM-2's modules without PyTorch: published sizes, padding, independence of rows, gradients, refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from converters.sam2 import PUBLISHED
from virtue_jax.batch import NO_TOKEN, NOT_A_POINT
from virtue_jax.config import HieraConfig, Numerics, Sam2Config
from virtue_jax.models.hiera import GLOBAL, block_windows
from virtue_jax.models.parameters import bind, parameters
from virtue_jax.models.sam2 import Sam2

BACKGROUNDS = {"sam2.1_hiera_t": 7, "sam2.1_hiera_s": 7, "sam2.1_hiera_b+": 14, "sam2.1_hiera_l": 7}
SIZES = {
    name: HieraConfig(dim, stages=stages, window_pos_embed_bkg_spatial_size=(BACKGROUNDS[name],) * 2, **rest)
    for (dim, stages), (name, rest) in PUBLISHED.items()
}
SMALL = Sam2Config(
    HieraConfig(8, 1, (1, 2, 2, 1), (4,), (8, 4, 14, 7)),
    d_model=16,
    image_size=128,
    decoder_heads=2,
    decoder_mlp_dim=32,
)
POINTS = np.array([[[10, 20], [90, 30], [60, 64.5], [0, 0]], [[64, 64], [3, 120], [0, 0], [0, 0]]], np.float32)
LABELS = np.array([[2, 3, 0, NOT_A_POINT], [1, 1, NOT_A_POINT, NO_TOKEN]], np.int32)


def with_weights(config: Sam2Config, **numerics) -> Sam2:
    """Random weights of unit gain, the same under any numerics. (A real initialisation compiles for many seconds.)"""
    model = nnx.eval_shape(lambda: Sam2(config, numerics=Numerics(**numerics), rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    weights = {}
    for path, p in parameters(model).items():
        values = rng.standard_normal(p.shape, np.float32)
        if path.endswith("kernel"):
            layers = p.shape[0] if ".rest." in path else 1
            values /= (p.size / p.shape[-1] / layers) ** 0.5
        weights[path] = jnp.asarray(1 + 0.2 * values if path.endswith("scale") else values, p.dtype)
    return bind(model, weights)


@functools.cache
def small(**numerics) -> Sam2:
    return with_weights(SMALL, **numerics)


@nnx.jit
def encoded(model: Sam2, images):
    return model.encode_image(images)


@nnx.jit
def prompted(model: Sam2, image_embed, points, labels, has_mask, masks):
    sparse, dense = model.encode_prompts(points, labels, has_mask, masks)
    return model.fuse(image_embed, sparse, labels, dense)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def image_embed() -> np.ndarray:
    return normal(2, SMALL.embedding_size, SMALL.embedding_size, SMALL.d_model)


def masks() -> np.ndarray:
    return 5 * normal(2, SMALL.mask_size, SMALL.mask_size, seed=1)


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_have_the_published_shapes(name):
    hiera, config = SIZES[name], Sam2Config(SIZES[name])
    model = nnx.eval_shape(lambda: Sam2(config, numerics=Numerics(), rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    image = jax.ShapeDtypeStruct((2, 1024, 1024, 3), jnp.float32)
    features = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s).image_features(x), state, image)
    sides = [256, 128, 64, 32]
    assert [x.shape for x in features["trunk"]] == [(2, s, s, d) for s, d in zip(sides, hiera.stage_dims, strict=True)]
    assert [x.shape for x in features["fpn"]] == [(2, s, s, 256) for s in sides[:3]]
    assert features["image_embed"].shape == (2, 64, 64, 256)
    shapes = {path: p.shape for path, p in parameters(model).items()}
    last = hiera.stages[3] - 1
    assert shapes["trunk.stages.3.rest.mlp.fc1.kernel"] == (last, hiera.stage_dims[3], 4 * hiera.stage_dims[3])
    assert shapes["trunk.stages.3.first.proj.kernel"] == (hiera.stage_dims[2], hiera.stage_dims[3])
    assert "trunk.stages.0.first.proj.kernel" not in shapes
    assert ("trunk.stages.0.rest.norm1.scale" in shapes) == (hiera.stages[0] > 1)


def test_windows_lag_one_block_behind_the_stages():
    windows = block_windows(SIZES["sam2.1_hiera_b+"])
    assert windows[0] == (8, 8) and windows[1] == (8, 4, 4) and windows[3] == (14, 7, 7)
    assert windows[2] == (4, *[14] * 6, GLOBAL, *[14] * 3, GLOBAL, *[14] * 3, GLOBAL)


def test_the_smallest_image_size_runs():
    embed = encoded(with_weights(dataclasses.replace(SMALL, image_size=64)), normal(1, 64, 64, 3))
    assert embed.shape == (1, 4, 4, SMALL.d_model)
    assert np.isfinite(embed).all()


@pytest.mark.slow
def test_padding_tokens_change_nothing():
    """Neither how many there are nor what stands in them."""
    padded = np.pad(POINTS, ((0, 0), (0, 5), (0, 0)), constant_values=np.nan)
    labels = np.pad(LABELS, ((0, 0), (0, 5)), constant_values=NO_TOKEN)
    fused, tokens = prompted(small(), image_embed(), POINTS, LABELS, None, None)
    fused_padded, tokens_padded = prompted(small(), image_embed(), padded, labels, None, None)
    np.testing.assert_allclose(fused_padded, fused, atol=2e-6)
    own = tokens.shape[1] - LABELS.shape[1]
    real = np.pad(LABELS != NO_TOKEN, ((0, 0), (own, 0)), constant_values=True)
    np.testing.assert_allclose(tokens_padded[:, : tokens.shape[1]][real], tokens[real], atol=2e-6)
    assert np.isfinite(tokens_padded).all()
    shorter, _ = prompted(small(), image_embed()[1:], POINTS[1:, :3], LABELS[1:, :3], None, None)
    np.testing.assert_allclose(fused[1:], shorter, atol=2e-6)


def test_a_padding_token_and_no_token_differ():
    """`NOT_A_POINT` is a real token; the test above would pass if labels were ignored."""
    other = np.where(LABELS == NO_TOKEN, NOT_A_POINT, LABELS)
    fused, _ = prompted(small(), image_embed(), POINTS, LABELS, None, None)
    changed, _ = prompted(small(), image_embed(), POINTS, other, None, None)
    np.testing.assert_allclose(changed[0], fused[0], atol=2e-6)
    assert np.abs(changed[1] - fused[1]).max() > 1e-3


def test_a_mask_alone_needs_no_sparse_token():
    none = np.full_like(LABELS, NO_TOKEN)
    fused, _ = prompted(small(), image_embed(), POINTS, none, None, masks())
    without, tokens = prompted(small(), image_embed(), POINTS[:, :0], none[:, :0], None, masks())
    np.testing.assert_allclose(fused, without, atol=2e-6)
    assert tokens.shape[1] == 2 + SMALL.num_mask_tokens


def test_rows_choose_their_own_mask():
    """`has_mask` False equals no mask at all, whatever stands in `masks`; True equals a mask in every row."""
    mixed, _ = prompted(small(), image_embed(), POINTS, LABELS, np.array([True, False]), masks())
    every, _ = prompted(small(), image_embed(), POINTS, LABELS, None, masks())
    none, _ = prompted(small(), image_embed(), POINTS, LABELS, None, None)
    np.testing.assert_allclose(mixed[0], every[0], atol=2e-6)
    np.testing.assert_allclose(mixed[1], none[1], atol=2e-6)
    assert np.abs(every - none).max() > 1e-2


def test_rows_are_independent():
    """A row gives the same whatever image, prompt and mask its neighbour has, from pixels to map."""
    images, has_mask = normal(2, 128, 128, 3), np.array([True, False])
    embed = encoded(small(), images)
    fused, _ = prompted(small(), embed, POINTS, LABELS, has_mask, masks())
    for row, other in ((0, 1), (1, 0)):
        neighbour = [np.array(x) for x in (images, POINTS, LABELS, has_mask, masks())]
        neighbour[0][other], neighbour[1][other], neighbour[2][other] = 3.0, 7.0, 0
        neighbour[3][other], neighbour[4][other] = not has_mask[other], -9.0
        changed = encoded(small(), neighbour[0])
        np.testing.assert_allclose(changed[row], embed[row], atol=1e-5)
        assert np.abs(changed[other] - embed[other]).max() > 1e-2
        fused_changed, _ = prompted(small(), changed, *neighbour[1:])
        np.testing.assert_allclose(fused_changed[row], fused[row], atol=1e-5)


def gradients(remat: str) -> dict[str, np.ndarray]:
    graphdef, state = nnx.split(small(remat=remat))
    images, has_mask, target = normal(2, 128, 128, 3), np.array([True, False]), image_embed()

    def loss(state):
        model = nnx.merge(graphdef, state)
        sparse, dense = model.encode_prompts(POINTS, LABELS, has_mask, masks())
        fused, _ = model.fuse(model.encode_image(images), sparse, LABELS, dense)
        return jnp.square(fused - target).mean()

    return parameters(nnx.merge(graphdef, jax.jit(jax.grad(loss))(state)))


@pytest.mark.slow
def test_gradients_reach_every_parameter_that_makes_the_map():
    plain, remat = gradients("none"), gradients("layer")
    dead = {path for path, g in plain.items() if not np.any(g)}
    # The map is done before the last update of the tokens; the two fine levels would only feed masks; a bias of the
    # keys shifts all logits of a query alike.
    unused = (
        "mask_decoder.transformer.final_attn",
        "mask_decoder.transformer.norm_final",
        "neck.convs.2",
        "neck.convs.3",
    )
    assert not {path for path in dead if not path.startswith(unused) and not path.endswith("k_proj.bias")}
    for path, gradient in plain.items():
        assert np.isfinite(gradient).all(), path
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(remat[path], gradient, atol=1e-4 * scale + 1e-9, err_msg=path)


@pytest.mark.slow
def test_bfloat16_stays_near_float32():
    images = normal(2, 128, 128, 3)
    exact, rough = encoded(small(), images), encoded(small(compute="bfloat16"), images)
    assert rough.dtype == jnp.bfloat16
    assert np.abs(rough.astype(jnp.float32) - exact).max() < 0.05 * np.abs(exact).max()
    exact_map, _ = prompted(small(), exact, POINTS, LABELS, None, None)
    rough_map, _ = prompted(small(compute="bfloat16"), rough, POINTS, LABELS, None, None)
    assert rough_map.dtype == jnp.bfloat16
    assert np.abs(rough_map.astype(jnp.float32) - exact_map).max() < 0.1 * np.abs(exact_map).max()


def test_positions_keep_float32_where_weights_are_bfloat16():
    model = nnx.eval_shape(lambda: Sam2(SMALL, numerics=Numerics("bfloat16", "bfloat16"), rngs=nnx.Rngs(0)))
    dtypes = {path: p.dtype for path, p in parameters(model).items()}
    assert dtypes.pop("prompt_encoder.positional_encoding_gaussian_matrix") == jnp.float32
    assert set(dtypes.values()) == {jnp.dtype("bfloat16")}


def hiera(**changes) -> Sam2Config:
    return dataclasses.replace(SMALL, hiera=dataclasses.replace(SMALL.hiera, **changes))


REFUSED = {
    "image_size 96 must be a multiple of 64": dataclasses.replace(SMALL, image_size=96),
    "image_size must be a multiple of 112": hiera(window_spec=(28, 4, 14, 7)),
    "expected 4 stages": hiera(stages=(1, 2, 2)),
    "at least one block": hiera(stages=(1, 2, 0, 1)),
    r"global_att_blocks \[9\] do not exist": hiera(global_att_blocks=(9,)),
    "block 3 opens stage 3": hiera(global_att_blocks=(3,)),
    r"window_spec\[1\] must be even": hiera(window_spec=(8, 5, 14, 7)),
    r"fpn_top_down_levels \[4\] do not exist": dataclasses.replace(SMALL, fpn_top_down_levels=(2, 4)),
    "3 heads do not divide": dataclasses.replace(SMALL, decoder_heads=3),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_geometry_that_cannot_run_is_refused(message):
    def build_and_run(images):
        return Sam2(REFUSED[message], numerics=Numerics(), rngs=nnx.Rngs(0)).encode_image(images)

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(build_and_run, jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32))


def test_arrays_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"images \(1, 64, 64, 3\), expected \[B, 128, 128, 3\]"):
        small().encode_image(normal(1, 64, 64, 3))
    with pytest.raises(ValueError, match=r"masks \(2, 64, 64\), expected \(2, 32, 32\)"):
        small().encode_prompts(POINTS, LABELS, None, normal(2, 64, 64))
    with pytest.raises(ValueError, match="has_mask without masks"):
        small().encode_prompts(POINTS, LABELS, np.array([True, False]), None)
