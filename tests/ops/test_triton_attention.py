"""The kernel for GPUs computes what every backend does, visits no more than it must, and lowers without a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absent_gpu import lowered_for_gpus
from attention_cases import inputs, oracle, segments_of, visible

from virtue_jax.ops.attention import attention
from virtue_jax.ops.block_visits import block_visits
from virtue_jax.ops.triton_attention import TUNED, TUNED_FLOAT32, triton_attention, tuning
from virtue_jax.ops.triton_kernels import powers_of_two
from virtue_jax.ops.xla_attention import xla_attention

emulated = functools.partial(triton_attention, interpret=True)


def outputs_and_gradients(function, q, k, v, causal, q_segments, kv_segments):
    real = 1.0 if q_segments is None else (q_segments > 0)[..., None, None]

    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def loss(q, k, v):
        out = function(q, k, v, q.shape[-1] ** -0.5, causal, q_segments, kv_segments)
        return jnp.sum(jnp.sin(out.astype(jnp.float32)) * real), out * real

    (_, out), gradients = jax.jit(loss)(q, k, v)
    return out, *gradients


@pytest.mark.parametrize(
    ("L", "H", "K", "D", "causal", "packed"),
    [
        pytest.param(256, 2, 2, 80, False, True, id="vision: 80 = 64 + 16", marks=pytest.mark.slow),
        pytest.param(200, 4, 2, 128, True, True, id="text: groups, a length that no block divides"),
        pytest.param(72, 2, 2, 56, False, False, id="SAM-2: a filled head", marks=pytest.mark.slow),
        pytest.param(96, 2, 1, 16, True, False, id="causal alone", marks=pytest.mark.slow),
    ],
)
def test_outputs_and_gradients_are_those_of_xla(L, H, K, D, causal, packed):
    q, k, v = inputs(B=2, L=L, H=H, K=K, D=D)
    segments = segments_of(2, L) if packed else None
    got = outputs_and_gradients(emulated, q, k, v, causal, segments, segments)
    expected = outputs_and_gradients(xla_attention, q, k, v, causal, segments, segments)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)  # float32 sums in another order, of gradients up to 10


def test_queries_and_keys_may_have_lengths_and_segments_of_their_own():
    q, k, v = inputs(B=1, L=40, S=70, H=2, K=2, D=32)
    q_segments = jnp.asarray(np.repeat([2, 1, 0], [10, 25, 5])[None])
    kv_segments = jnp.asarray(np.repeat([1, 0, 2, 1], [30, 10, 20, 10])[None])  # neither sorted nor in one piece
    got = outputs_and_gradients(emulated, q, k, v, False, q_segments, kv_segments)
    expected = outputs_and_gradients(xla_attention, q, k, v, False, q_segments, kv_segments)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_bfloat16_is_rounded_once_on_the_way_in_and_out():
    q, k, v = inputs(B=1, L=128, H=2, K=1, D=64, dtype=jnp.bfloat16)
    segments = segments_of(1, 128)
    got = emulated(q, k, v, 0.125, True, segments, segments)
    assert got.dtype == jnp.bfloat16
    real = np.asarray(segments[0]) > 0
    exact = oracle(q, k, v, 0.125, visible(segments, True))
    # The weights (at most 1) and the result are rounded to 8 bits: two errors of 2^-8 of values near 2.
    np.testing.assert_allclose(got.astype(jnp.float32)[:, real], exact[:, real], atol=1.6e-2)


def test_padding_is_finite_and_has_no_gradient():
    q, k, v = inputs(B=1, L=64, H=1, K=1, D=16)
    segments = jnp.zeros((1, 64), jnp.int32).at[:, :20].set(1)
    out, pull = jax.vjp(lambda q, k, v: emulated(q, k, v, 0.25, True, segments, segments), q, k, v)
    gradients = pull(jnp.ones_like(out))
    assert np.isfinite(out).all() and all(np.isfinite(g).all() and not g[:, 20:].any() for g in gradients)
    assert not emulated(q, k, v, 0.25, True, segments * 0, segments * 0).any(), "a row of nothing but padding"


def test_only_blocks_that_share_a_segment_are_visited():
    segments = jnp.asarray(np.repeat([1, 2, 3, 0], [24, 8, 16, 16])[None])
    first, last = block_visits(segments, segments, 16, 8, causal=False)
    assert (first[0].tolist(), last[0].tolist()) == ([0, 0, 4, 0], [3, 4, 6, 0])
    first, last = block_visits(segments, segments, 16, 8, causal=True)
    assert (first[0].tolist(), last[0].tolist()) == ([0, 0, 4, 0], [2, 4, 6, 0])
    first, last = block_visits(segments, segments, 16, 8, causal=True, of_keys=True)
    assert (first[0].tolist(), last[0].tolist()) == ([0, 0, 1, 1, 2, 2, 0, 0], [2, 2, 2, 2, 3, 3, 0, 0])


@pytest.mark.parametrize("size", [16, 48, 64, 80, 96, 128])
def test_a_head_is_worked_on_in_powers_of_two(size):
    parts = powers_of_two(size)
    assert sum(part for _, part in parts) == size and all(part & (part - 1) == 0 for _, part in parts)
    assert [begin for begin, _ in parts] == [sum(part for _, part in parts[:i]) for i in range(len(parts))]


def test_blocks_fit_the_shared_memory_of_an_a100():
    """Blocks of own and visited arrays that are in shared memory at a time; an A100 lends a program 163 KiB."""
    for table, itemsize in ((TUNED, 2), (TUNED_FLOAT32, 4)):
        for head, tuned in table.items():
            forward, keys, queries = tuned
            held = [
                forward.queries + 2 * forward.keys * forward.stages,
                2 * keys.keys + 2 * keys.queries * keys.stages,
                2 * queries.queries + 2 * queries.keys * queries.stages,
            ]
            assert max(held) * head * itemsize <= 163 * 2**10
    assert tuning(80, jnp.bfloat16) == TUNED[128] and tuning(56, jnp.float32) == TUNED_FLOAT32[128]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("length", "heads", "key_heads", "size", "causal"),
    [(2560, 12, 2, 128, True), (2560, 28, 4, 128, True), (5120, 16, 16, 80, False), (4096, 8, 8, 56, False)],
)
def test_it_lowers_for_a_gpu_that_is_not_there(length, heads, key_heads, size, causal, dtype):
    q = jax.ShapeDtypeStruct((1, length, heads, size), dtype)
    k = jax.ShapeDtypeStruct((1, length, key_heads, size), dtype)
    segments = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def loss(q, k, v, s):
        out = attention(q, k, v, causal=causal, q_segments=s, kv_segments=s, backend="triton")
        return out.astype(jnp.float32).sum()

    text = lowered_for_gpus(jax.grad(loss, (0, 1, 2)), q, k, k, segments)
    for name in ("attention_forward", "attention_query_gradient", "attention_key_gradients"):
        assert text.count(f'name = "{name}"') == 1
    assert f"{length}x{length}" not in text, "no square outside of the kernels"


def test_what_it_cannot_compute_is_refused():
    q, k, v = inputs(B=1, L=16, H=1, K=1, D=272)
    with pytest.raises(ValueError, match=r"head size 272 is larger than 256; set numerics\.attention='xla'"):
        attention(q, k, v, backend="triton")
    with pytest.raises(ValueError, match="q float32, k bfloat16, v float32: expected the same"):
        attention(q, k.astype(jnp.bfloat16), v, backend="triton")
