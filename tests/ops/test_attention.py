"""Every backend computes the same function, with the same gradients, in bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from virtue_jax.ops import attention as module
from virtue_jax.ops.attention import attention, resolve_backend


def _inputs(B=2, L=256, S=None, H=4, K=2, D=16, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    S = S or L
    shapes = (B, L, H, D), (B, S, K, D), (B, S, K, D)
    return [jnp.asarray(rng.standard_normal(s), dtype) for s in shapes]


def _segments(B, L):
    """Two examples and padding in each row, cut elsewhere in every row."""
    cuts = [(L // 3 + 5 * b, 2 * L // 3 + 3 * b) for b in range(B)]
    index = np.arange(L)
    return jnp.asarray([np.where(index < c, 1, np.where(index < d, 2, 0)) for c, d in cuts], jnp.int32)


def _oracle(q, k, v, scale, mask_BLS):
    """Attention from its definition in float64, one head at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, h in np.ndindex(q.shape[0], q.shape[2]):
        logits = q[b, :, h] @ k[b, :, h // (q.shape[2] // k.shape[2])].T * scale
        weights = np.where(mask_BLS[b], np.exp(logits - logits.max(-1, keepdims=True)), 0.0)
        out[b, :, h] = weights / weights.sum(-1, keepdims=True) @ v[b, :, h // (q.shape[2] // k.shape[2])]
    return out


def _mask(segments, causal):
    segments = np.asarray(segments)
    mask = segments[:, :, None] == segments[:, None, :]
    return mask & np.tri(segments.shape[1], dtype=bool) if causal else mask


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("logits_bytes", [2**30, 4 * 2 * 4 * 300 * 130])
def test_xla_is_attention_in_one_block_and_in_several(monkeypatch, causal, logits_bytes):
    monkeypatch.setattr(module, "LOGITS_BYTES", logits_bytes)
    q, k, v = _inputs(L=300)  # not a multiple of the block
    segments = _segments(2, 300)
    got = attention(q, k, v, causal=causal, q_segments=segments, kv_segments=segments, backend="xla")
    np.testing.assert_allclose(got, _oracle(q, k, v, 0.25, _mask(segments, causal)), atol=2e-6)


def test_blocks_leave_the_gradients_as_they_are(monkeypatch):
    q, k, v = _inputs(L=300)
    segments = _segments(2, 300)

    def loss(q, k, v):
        out = attention(q, k, v, causal=True, q_segments=segments, kv_segments=segments, backend="xla")
        return jnp.sum(jnp.sin(out) * (segments > 0)[..., None, None])

    whole = jax.grad(loss, (0, 1, 2))(q, k, v)
    monkeypatch.setattr(module, "LOGITS_BYTES", 1)
    for a, b in zip(whole, jax.grad(loss, (0, 1, 2))(q, k, v), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6)


def test_cross_attention_ignores_keys_of_segment_zero():
    q, k, v = _inputs(L=5, S=9, H=2, K=2)
    real = jnp.arange(9) < 6
    kv_segments = jnp.broadcast_to(real, (2, 9)).astype(jnp.int32)
    got = attention(q, k, v, q_segments=jnp.ones((2, 5), jnp.int32), kv_segments=kv_segments, backend="xla")
    np.testing.assert_allclose(got, attention(q, k[:, :6], v[:, :6], backend="xla"), atol=1e-6)


def test_a_query_without_a_visible_key_stays_finite():
    q, k, v = _inputs(L=4)
    ones, twos = jnp.ones((2, 4), jnp.int32), jnp.full((2, 4), 2)

    def total(q, k, v):
        return attention(q, k, v, q_segments=ones, kv_segments=twos, backend="xla").sum()

    for value in (total(q, k, v), *jax.grad(total, (0, 1, 2))(q, k, v)):
        assert np.isfinite(value).all()


def test_softmax_is_float32_under_bfloat16():
    q, k, v = _inputs(L=64, dtype=jnp.bfloat16)
    got = attention(q, k, v, backend="xla")
    assert got.dtype == jnp.bfloat16
    exact = _oracle(q, k, v, 0.25, np.ones((2, 64, 64), bool))
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


@pytest.mark.parametrize(("heads", "key_heads", "size", "causal"), [(2, 2, 80, False), (4, 2, 128, True)])
def test_splash_kernel_computes_what_xla_does(heads, key_heads, size, causal):
    q, k, v = _inputs(B=2, L=256, H=heads, K=key_heads, D=size)
    segments = _segments(2, 256)
    real = (segments > 0)[..., None, None]

    def run(backend):
        def loss(q, k, v):
            out = backend(q, k, v, size**-0.5, causal, segments, segments) * real
            return jnp.sum(jnp.sin(out)), out

        (_, out), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
        return out, *grads

    def emulated(*args):
        return module._splash(*args, interpret=True)

    for got, expected in zip(run(emulated), run(module._xla), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("length", "heads", "key_heads", "size", "causal"), [(2816, 12, 2, 128, True), (5120, 16, 16, 80, False)]
)
def test_splash_lowers_for_a_tpu_that_is_not_there(length, heads, key_heads, size, causal):
    q = jax.ShapeDtypeStruct((1, length, heads, size), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((1, length, key_heads, size), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def loss(q, k, v, s):
        out = attention(q, k, v, causal=causal, q_segments=s, kv_segments=s, backend="splash")
        return out.astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(loss, (0, 1, 2)))
    exported = jax.export.export(gradient, platforms=["tpu"])(q, k, k, segments)
    # The call target's name is also in the module's metadata; the op itself carries the @.
    assert exported.mlir_module().count("@tpu_custom_call") == 3  # forward, dq, dkv


def test_unknown_and_unusable_backends_say_what_to_do():
    q, k, v = _inputs(L=100)
    with pytest.raises(ValueError, match=r"'flash' is not one of xla, splash: set numerics\.attention"):
        attention(q, k, v, backend="flash")
    with pytest.raises(ValueError, match=r"100 queries are not a multiple of 128.*numerics\.attention='xla'"):
        attention(q, k, v, backend="splash")
    with pytest.raises(ValueError, match=r"'splash' does not run on 'cpu'.*\['auto', 'xla'\]"):
        resolve_backend("splash", "cpu")
    with pytest.raises(ValueError, match="'auto' is not one of"):
        attention(*_inputs(), backend="auto")


def test_auto_is_the_kernel_of_the_platform_and_a_named_backend_stays():
    found = {platform: resolve_backend("auto", platform) for platform in ("tpu", "cpu", "rocm")}
    assert found == {"tpu": "splash", "cpu": "xla", "rocm": "xla"}
    assert resolve_backend("splash", "tpu") == "splash" and resolve_backend("xla", "tpu") == "xla"


def test_shapes_that_do_not_fit_are_named():
    q, k, v = _inputs(H=4, K=2)
    ones = jnp.ones((2, 256), jnp.int32)
    with pytest.raises(ValueError, match="3 key heads do not divide 4"):
        attention(q, *_inputs(K=3)[1:], backend="xla")
    with pytest.raises(ValueError, match="as many queries as keys"):
        attention(q[:, :8], k, v, causal=True, backend="xla")
    with pytest.raises(ValueError, match="give both or neither"):
        attention(q, k, v, q_segments=ones, backend="xla")
    with pytest.raises(ValueError, match=r"segments \(2, 8\)"):
        attention(q, k, v, q_segments=ones[:, :8], kv_segments=ones, backend="xla")
