import jax
import jax.numpy as jnp
import numpy as np
import pytest

from virtue_jax.train.step.chunks import encode_in_chunks, join_chunks, split_chunks

W = np.random.default_rng(0).standard_normal((5, 5)).astype(np.float32)


def test_join_undoes_split():
    x = {"a": np.arange(24).reshape(12, 2), "b": np.arange(12)}
    again = join_chunks(split_chunks(x, 3))
    assert all((again[k] == x[k]).all() for k in x)


def test_rows_that_do_not_divide_are_an_error():
    with pytest.raises(ValueError, match="10 rows do not divide into 4"):
        split_chunks(np.zeros((10, 2)), 4)


def loss(w, x, chunks, keys=None):
    def encode(item):
        part, keys = item
        h = jnp.tanh(part @ w)
        if keys is not None:
            h = h * jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, h.shape[1:]))(keys)
        return h

    z = encode_in_chunks(encode, (x, keys), chunks)
    return jax.nn.logsumexp(z @ z.T)  # every row meets every other, as in a contrastive loss


@pytest.mark.parametrize("chunks", [2, 3, 6])
@pytest.mark.parametrize("dropout", [False, True])
def test_chunked_values_and_gradients_equal_plain(chunks, dropout):
    x = np.random.default_rng(1).standard_normal((12, 5)).astype(np.float32)
    keys = jax.random.split(jax.random.key(7), 12) if dropout else None
    plain, chunked = (jax.value_and_grad(loss)(W, x, n, keys) for n in (1, chunks))
    np.testing.assert_allclose(chunked[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(chunked[1], plain[1], rtol=1e-5, atol=1e-6)


def test_micro_batches_keep_memory_down():
    x = jax.ShapeDtypeStruct((256, 64), jnp.float32)
    w = jax.ShapeDtypeStruct((64, 64), jnp.float32)

    def deep(w, x, chunks):
        def encode(part):
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
