"""Attention for CPUs: its definition, whatever the length, segments and dtype."""

import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import inputs, oracle, segments_of, visible

from virtue_jax.ops.attention import CPU, attention


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [300, 128, 9])
def test_it_is_attention_whatever_the_length(causal, length):
    q, k, v = inputs(L=length)  # blocks are of 64
    segments = segments_of(2, length)
    got = attention(q, k, v, causal=causal, q_segments=segments, kv_segments=segments, backend=CPU)
    np.testing.assert_allclose(got, oracle(q, k, v, 0.25, visible(segments, causal)), atol=2e-6)


def test_without_segments_and_with_other_keys_than_queries():
    q, k, v = inputs(L=70, S=33, H=4, K=2)
    got = attention(q, k, v, backend=CPU)
    np.testing.assert_allclose(got, oracle(q, k, v, 0.25, np.ones((2, 70, 33), bool)), atol=2e-6)


def test_a_query_without_a_visible_key_stays_finite():
    q, k, v = inputs(L=4)
    ones, twos = jnp.ones((2, 4), jnp.int32), jnp.full((2, 4), 2)
    assert np.isfinite(attention(q, k, v, q_segments=ones, kv_segments=twos, backend=CPU)).all()


def test_softmax_is_float32_under_bfloat16():
    q, k, v = inputs(L=64, dtype=jnp.bfloat16)
    got = attention(q, k, v, backend=CPU)
    assert got.dtype == jnp.bfloat16
    exact = oracle(q, k, v, 0.25, np.ones((2, 64, 64), bool))
    assert np.abs(np.asarray(got, np.float64) - exact).max() < 0.01
