"""Large batches on little memory: encode in micro-batches, keep only what each gives (GradCache, arXiv 2101.06983)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def split_chunks(tree, chunks: int):
    """Every leaf [R, ...] -> [chunks, R / chunks, ...], row r going to chunk r % chunks.

    Strided, so that rows that are sharded over devices stay where they are: a contiguous split would move them.
    """

    def split(x):
        if x.shape[0] % chunks:
            raise ValueError(f"{x.shape[0]} rows do not divide into {chunks} micro-batches")
        return x.reshape(x.shape[0] // chunks, chunks, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, tree)


def join_chunks(tree):
    """The inverse of `split_chunks`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)


def encode_in_chunks(encode: Callable, inputs, chunks: int, key: jax.Array | None = None):
    """encode(inputs, key) micro-batch by micro-batch; the same values and gradients as in one piece.

    Under `jax.grad` only inputs and results are kept and each micro-batch is encoded again in the backward pass, with
    the same dropout key: GradCache's two passes, written by the differentiation. Micro-batch i drops out with
    fold_in(key, i).
    """
    if chunks == 1:
        return encode(inputs, key)

    @jax.checkpoint
    def one(item):
        index, part = item
        return encode(part, None if key is None else jax.random.fold_in(key, index))

    return join_chunks(lax.map(one, (jnp.arange(chunks), split_chunks(inputs, chunks))))
