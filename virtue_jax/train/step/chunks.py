"""Large batches on little memory: encode in micro-batches, keep only what each gives (GradCache, arXiv 2101.06983)."""

from collections.abc import Callable, Sequence

import jax
from jax import lax

from virtue_jax.parallel.constrain import ROWS, constrain


def run_together(lengths: Sequence[int], chunks: Sequence[int]) -> list[list[int]]:
    """Which row groups the language model takes in one run, as their numbers: those of one length of rows, cut into
    equally many micro-batches."""
    alike: dict[tuple[int, int], list[int]] = {}
    for i, key in enumerate(zip(lengths, chunks, strict=True)):
        alike.setdefault(key, []).append(i)
    return list(alike.values())


def split_chunks(tree, chunks: int):
    """Every leaf [R, ...] -> [chunks, R / chunks, ...], row r going to chunk r % chunks.

    Strided, so that rows that are sharded over devices stay where they are: a contiguous split would move them.
    """

    def split(x):
        if x.shape[0] % chunks:
            raise ValueError(f"{x.shape[0]} rows do not divide into {chunks} micro-batches")
        x = x.reshape(x.shape[0] // chunks, chunks, *x.shape[1:]).swapaxes(0, 1)
        return x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else constrain(x, None, ROWS)

    return jax.tree.map(split, tree)


def join_chunks(tree):
    """The inverse of `split_chunks`."""
    return jax.tree.map(lambda x: constrain(x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), ROWS), tree)


def encode_in_chunks(encode: Callable, inputs, chunks: int):
    """encode(inputs) micro-batch by micro-batch; the same values and gradients as in one piece.

    Under `jax.grad` only inputs and results are kept and each micro-batch is encoded again in the backward pass:
    GradCache's two passes, written by the differentiation. Whatever is random must be in `inputs`, row by row.
    """
    if chunks == 1:
        return encode(inputs)
    # In a loop nothing can be merged with what is computed again, so that no barriers against it are needed.
    return join_chunks(lax.map(jax.checkpoint(encode, prevent_cse=False), split_chunks(inputs, chunks)))
