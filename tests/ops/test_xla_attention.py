"""Attention by matrix products: its definition, whatever the block, in bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import inputs, oracle, segments_of, visible

from virtue_jax.ops import xla_attention as module
from virtue_jax.ops.attention import attention


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("logits_bytes", [2**30, 4 * 2 * 4 * 300 * 130])
def test_xla_is_attention_in_one_block_and_in_several(monkeypatch, causal, logits_bytes):
    monkeypatch.setattr(module, "LOGITS_BYTES", logits_bytes)
    q, k, v = inputs(L=300)  # not a multiple of the block
    segments = segments_of(2, 300)
    got = attention(q, k, v, causal=causal, q_segments=segments, kv_segments=segments, backend="xla")
    np.testing.assert_allclose(got, oracle(q, k, v, 0.25, visible(segments, causal)), atol=2e-6)


def test_blocks_leave_the_gradients_as_they_are(monkeypatch):
    q, k, v = inputs(L=300)
    segments = segments_of(2, 300)

    def loss(q, k, v):
        out = attention(q, k, v, causal=True, q_segments=segments, kv_segments=segments, backend="xla")
        return jnp.sum(jnp.sin(out) * (segments > 0)[..., None, None])

    whole = jax.grad(loss, (0, 1, 2))(q, k, v)
    monkeypatch.setattr(module, "LOGITS_BYTES", 1)
    for a, b in zip(whole, jax.grad(loss, (0, 1, 2))(q, k, v), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6)


def test_cross_attention_ignores_keys_of_segment_zero():
    q, k, v = inputs(L=5, S=9, H=2, K=2)
    real = jnp.arange(9) < 6
    kv_segments = jnp.broadcast_to(real, (2, 9)).astype(jnp.int32)
    got = attention(q, k, v, q_segments=jnp.ones((2, 5), jnp.int32), kv_segments=kv_segments, backend="xla")
    np.testing.assert_allclose(got, attention(q, k[:, :6], v[:, :6], backend="xla"), atol=1e-6)


def test_a_query_without_a_visible_key_stays_finite():
    q, k, v = inputs(L=4)
    ones, twos = jnp.ones((2, 4), jnp.int32), jnp.full((2, 4), 2)

    def total(q, k, v):
        return attention(q, k, v, q_segments=ones, kv_segments=twos, backend="xla").sum()

    for value in (total(q, k, v), *jax.grad(total, (0, 1, 2))(q, k, v)):
        assert np.isfinite(value).all()


def test_softmax_is_float32_under_bfloat16():
    q, k, v = inputs(L=64, dtype=jnp.bfloat16)
    got = attention(q, k, v, backend="xla")
    assert got.dtype == jnp.bfloat16
    exact = oracle(q, k, v, 0.25, np.ones((2, 64, 64), bool))
    np.testing.assert_allclose(got.astype(jnp.float32), exact, atol=8e-3)  # one bfloat16 rounding of values near 1


def test_five_thousand_patches_take_bounded_memory_forwards_and_backwards():
    q = jax.ShapeDtypeStruct((1, 5120, 16, 80), jnp.float32)
    segments = jax.ShapeDtypeStruct((1, 5120), jnp.int32)

    def loss(q, k, v, segments):
        return attention(q, k, v, q_segments=segments, kv_segments=segments, backend="xla").sum()

    logits = 4 * 16 * 5120**2
    for function in (loss, jax.grad(loss, (0, 1, 2))):
        memory = jax.jit(function).lower(q, q, q, segments).compile().memory_analysis()
        assert memory.temp_size_in_bytes < logits / 2
