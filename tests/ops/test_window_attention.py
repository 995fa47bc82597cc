"""Windowed attention by the TPU kernel (emulated) and by products, against windows taken one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from virtue_jax.ops.window_attention import window_attention, window_attention_tpu, window_attention_xla
from virtue_jax.ops.window_kernel import cut_of, plan

# (height, width, channels in and out, heads, window): several windows in a group, a map that they do not fill with
# SAM-2's window of 14, whole windows, heads of 72 and more, three heads in lanes for two.
MAPS = [
    (8, 16, 56, 112, 2, 4),
    (12, 20, 56, 112, 2, 14),
    pytest.param((8, 32, 56, 112, 2, 8), marks=pytest.mark.slow),
    pytest.param((9, 13, 24, 24, 2, 6), marks=pytest.mark.slow),
    pytest.param((8, 16, 144, 192, 2, 8), marks=pytest.mark.slow),
    pytest.param((16, 16, 60, 180, 3, 8), marks=pytest.mark.slow),
]


def one_by_one(x, qkv, qkv_bias, proj, proj_bias, *, heads, window, pooled):
    """numpy, float64, a window after the other."""
    x, qkv, qkv_bias, proj, proj_bias = (np.asarray(each, np.float64) for each in (x, qkv, qkv_bias, proj, proj_bias))
    B, H, W, _ = x.shape
    padded = np.pad(x, ((0, 0), (0, -H % window), (0, -W % window), (0, 0)))
    D, side = len(proj), window // 2 if pooled else window
    out = np.zeros((B, padded.shape[1] * side // window, padded.shape[2] * side // window, D))
    for b, i, j in np.ndindex(B, padded.shape[1] // window, padded.shape[2] // window):
        tokens = padded[b, i * window : (i + 1) * window, j * window : (j + 1) * window]
        q, k, v = np.split(tokens @ qkv + qkv_bias, 3, axis=-1)
        if pooled:
            q = np.max([q[y::2, x::2] for y in (0, 1) for x in (0, 1)], axis=0)
        q, k, v = (each.reshape(-1, heads, D // heads) for each in (q, k, v))
        logits = np.einsum("lhd,shd->hls", q, k) / np.sqrt(D // heads)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        y = np.einsum("hls,shd->lhd", weights / weights.sum(-1, keepdims=True), v).reshape(side, side, D)
        out[b, i * side : (i + 1) * side, j * side : (j + 1) * side] = y
    scale = 2 if pooled else 1
    return out[:, : H // scale, : W // scale] @ proj + proj_bias


def inputs(height, width, C, D, dtype=jnp.float32):
    rng = np.random.default_rng(height * width + C)
    shapes = [(2, height, width, C), (C, 3 * D), (3 * D,), (D, D), (D,)]
    scales = [1.0, C**-0.5, 0.5, D**-0.5, 0.5]
    return [jnp.asarray(rng.normal(size=s) * scale, dtype) for s, scale in zip(shapes, scales, strict=True)]


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("case", MAPS)
def test_kernel_and_products_give_every_window_s_attention(case, pooled):
    height, width, C, D, heads, window = case
    if pooled:
        height = height + height % 2
        width = width + width % 2
    given = inputs(height, width, C, D)
    asked = {"heads": heads, "window": window, "pooled": pooled}
    expected = one_by_one(*given, **asked)
    for attend in (window_attention_xla, functools.partial(window_attention_tpu, interpret=True)):
        np.testing.assert_allclose(attend(*given, **asked), expected, rtol=2e-5, atol=2e-5)


def test_bfloat16_stays_near_float32():
    given = inputs(16, 32, 56, 112)
    asked = {"heads": 2, "window": 8, "pooled": True}
    exact = window_attention_xla(*given, **asked)
    got = window_attention_tpu(*(each.astype(jnp.bfloat16) for each in given), **asked, interpret=True)
    assert got.dtype == jnp.bfloat16
    assert np.abs(got.astype(jnp.float32) - exact).mean() < 0.02 * np.abs(exact).mean()


@pytest.mark.slow
def test_gradients_are_those_of_the_products():
    given = inputs(8, 8, 24, 48)
    asked = {"heads": 2, "window": 4, "pooled": True}

    def loss(attend):
        return jax.grad(lambda given: jnp.sum(jnp.sin(attend(*given, **asked))))(given)

    by_kernel = loss(functools.partial(window_attention_tpu, interpret=True))
    for got, expected in zip(by_kernel, loss(window_attention_xla), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_windows_are_cut_into_whole_tiles():
    cuts = {window: cut_of(64, window, pooled=False) for window in (4, 7, 8, 14, 16)}
    assert {window: (cut.count, cut.groups, cut.columns) for window, cut in cuts.items()} == {
        4: (8, 2, 32),
        7: (2, 5, 16),
        8: (2, 4, 16),
        14: (1, 5, 16),
        16: (1, 4, 16),
    }
    labels = cuts[7].labels(1).reshape(7, 16)
    assert (labels == [0] * 7 + [1] * 7 + [-1] * 2).all()


def test_a_row_of_windows_that_memory_has_no_room_for_is_taken_in_parts_or_by_products():
    """The last opening block of SAM-2.1 b+ in parts; in float32 and wider, not at all."""
    shape, asked = (4, 64, 64, 448), {"heads": 16, "window": 14, "pooled": True}
    assert plan(shape, 896, **asked, dtype=jnp.bfloat16).at_once == 1
    assert plan((4, 256, 256, 112), 112, 2, 8, False, jnp.bfloat16).at_once == 16
    wide = (1, 4, 4, 2048)
    assert plan(wide, 4096, **asked, dtype=jnp.float32) is None
    # No kernel is asked for: on this CPU one that is not emulated would fail.
    given = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (wide, (2048, 12288), (12288,), (4096, 4096), (4096,))]
    attend = functools.partial(window_attention, **asked, backend="splash")
    out = jax.eval_shape(lambda x, *p: attend(x, p[:2], p[2:]), *given)
    assert out.shape == (1, 2, 2, 4096)
    text = str(jax.make_jaxpr(lambda x, *p: attend(x, p[:2], p[2:]))(*given))
    assert "pallas_call" not in text


def test_what_the_compiler_cannot_take_has_no_plan():
    """Found with libtpu 0.0.42: pooled heads of more than 128 lanes, and logits larger than a chip's memory."""
    assert plan((1, 64, 64, 128), 320, 2, 8, True, jnp.bfloat16) is None
    assert plan((1, 64, 64, 128), 320, 2, 8, False, jnp.bfloat16) is not None
    assert plan((1, 64, 64, 32), 64, 1, 48, False, jnp.bfloat16) is None
    assert plan((1, 64, 64, 32), 64, 1, 28, False, jnp.bfloat16) is not None


def test_parts_of_a_row_give_what_the_whole_row_does(monkeypatch):
    given = inputs(8, 64, 24, 48)
    asked = {"heads": 2, "window": 4, "pooled": False, "interpret": True}
    whole = window_attention_tpu(*given, **asked)
    planned = plan(given[0].shape, 48, 2, 4, False, jnp.float32)
    assert planned.at_once == 2
    monkeypatch.setattr("virtue_jax.ops.window_kernel.VMEM", planned.bytes - 1)
    assert plan(given[0].shape, 48, 2, 4, False, jnp.float32).at_once == 1
    np.testing.assert_array_equal(window_attention_tpu(*given, **asked), whole)


@pytest.mark.parametrize("backend", ["xla", "triton"])
def test_other_backends_take_products(backend):
    given = inputs(8, 8, 24, 48)
    asked = {"heads": 2, "window": 4, "pooled": False}
    got = window_attention(given[0], given[1:3], given[3:], **asked, backend=backend)
    np.testing.assert_array_equal(got, window_attention_xla(*given, **asked))
