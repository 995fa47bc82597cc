"""The kernel for TPUs computes what every backend does, and lowers for a TPU that is not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import inputs, segments_of

from virtue_jax.ops.attention import attention
from virtue_jax.ops.splash import splash_attention
from virtue_jax.ops.xla_attention import xla_attention


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "key_heads", "size", "causal"), [(2, 2, 80, False), (4, 2, 128, True)])
def test_splash_kernel_computes_what_xla_does(heads, key_heads, size, causal):
    q, k, v = inputs(B=2, L=256, H=heads, K=key_heads, D=size)
    segments = segments_of(2, 256)
    real = (segments > 0)[..., None, None]

    def run(backend):
        def loss(q, k, v):
            out = backend(q, k, v, size**-0.5, causal, segments, segments) * real
            return jnp.sum(jnp.sin(out)), out

        (_, out), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
        return out, *grads

    def emulated(*args):
        return splash_attention(*args, interpret=True)

    for got, expected in zip(run(emulated), run(xla_attention), strict=True):
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
    assert exported.mlir_module().count("@tpu_custom_call") == 2  # forward, and all of the backward pass
