import jax
import jax.numpy as jnp
import numpy as np
import pytest

from virtue_jax.train.chunks import encode_in_chunks, join_chunks, split_chunks

W = np.random.default_rng(0).standard_normal((5, 5)).astype(np.float32)


def test_join_undoes_split():
    x = {"a": np.arange(24).reshape(12, 2), "b": np.arange(12)}
    again = join_chunks(split_chunks(x, 3))
    assert all((again[k] == x[k]).all() for k in x)


def test_rows_that_do_not_divide_are_an_error():
    with pytest.raises(ValueError, match="10 rows do not divide into 4"):
        split_chunks(np.zeros((10, 2)), 4)


def loss(w, x, chunks, key=None):
    def encode(part, k):
        h = jnp.tanh(part @ w)
        if k is not None:
            h = h * jax.random.bernoulli(k, 0.5, h.shape)
        return h

    z = encode_in_chunks(encode, x, chunks, key)
    return jax.nn.logsumexp(z @ z.T)  # every row meets every other, as in a contrastive loss


@pytest.mark.parametrize("chunks", [2, 3, 6])
def test_chunked_values_and_gradients_equal_plain(chunks):
    x = np.random.default_rng(1).standard_normal((12, 5)).astype(np.float32)
    plain, chunked = (jax.value_and_grad(loss)(W, x, n) for n in (1, chunks))
    np.testing.assert_allclose(chunked[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(chunked[1], plain[1], rtol=1e-5, atol=1e-6)


def test_the_backward_pass_repeats_the_forward_dropout():
    x = np.random.default_rng(1).standard_normal((12, 5)).astype(np.float32)
    key = jax.random.key(7)
    grad = jax.grad(loss)(W, x, 3, key)
    direction = np.random.default_rng(2).standard_normal(W.shape).astype(np.float32)
    step = 1e-2
    ahead, behind = (loss(W + sign * step * direction, x, 3, key) for sign in (1, -1))
    np.testing.assert_allclose((grad * direction).sum(), (ahead - behind) / (2 * step), rtol=2e-2)


def test_micro_batches_keep_memory_down():
    x = jax.ShapeDtypeStruct((256, 64), jnp.float32)
    w = jax.ShapeDtypeStruct((64, 64), jnp.float32)

    def deep(w, x, chunks):
        def encode(part, _):
            for _ in range(20):
                part = jnp.tanh(part @ w)
            return part[:, :2]

        z = encode_in_chunks(encode, x, chunks)
        return jax.nn.logsumexp(z @ z.T)

    temp = {
        n: jax.jit(jax.grad(deep), static_argnums=2).lower(w, x, n).compile().memory_analysis().temp_size_in_bytes
        for n in (1, 8)
    }
    assert temp[8] < 0.6 * temp[1]
