"""Which backend is meant, and what cannot be computed."""

import jax.numpy as jnp
import pytest
from attention_cases import inputs

from virtue_jax.ops.attention import attention, resolve_backend


def test_unknown_and_unusable_backends_say_what_to_do():
    q, k, v = inputs(L=100)
    with pytest.raises(ValueError, match=r"'flash' is not one of xla, splash, triton: set numerics\.attention"):
        attention(q, k, v, backend="flash")
    with pytest.raises(ValueError, match=r"100 queries are not a multiple of 128.*numerics\.attention='xla'"):
        attention(q, k, v, backend="splash")
    with pytest.raises(ValueError, match=r"'splash' does not run on 'cpu'.*\['auto', 'xla'\]"):
        resolve_backend("splash", "cpu")
    with pytest.raises(ValueError, match="'auto' is not one of"):
        attention(*inputs(), backend="auto")


def test_auto_is_the_kernel_of_the_platform_and_a_named_backend_stays():
    found = {platform: resolve_backend("auto", platform) for platform in ("tpu", "cuda", "cpu", "rocm")}
    assert found == {"tpu": "splash", "cuda": "triton", "cpu": "xla", "rocm": "xla"}
    assert resolve_backend("splash", "tpu") == "splash" and resolve_backend("xla", "tpu") == "xla"


def test_shapes_that_do_not_fit_are_named():
    q, k, v = inputs(H=4, K=2)
    ones = jnp.ones((2, 256), jnp.int32)
    with pytest.raises(ValueError, match="3 key heads do not divide 4"):
        attention(q, *inputs(K=3)[1:], backend="xla")
    with pytest.raises(ValueError, match="as many queries as keys"):
        attention(q[:, :8], k, v, causal=True, backend="xla")
    with pytest.raises(ValueError, match="give both or neither"):
        attention(q, k, v, q_segments=ones, backend="xla")
    with pytest.raises(ValueError, match=r"segments \(2, 8\)"):
        attention(q, k, v, q_segments=ones[:, :8], kv_segments=ones, backend="xla")
