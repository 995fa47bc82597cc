"""Embedding where some examples may be unreadable: the rest is embedded, and each bad one is named."""

from collections.abc import Callable, Sequence

import numpy as np

from virtue_jax.data.encoding.check import check_example
from virtue_jax.data.example import Example
from virtue_jax.data.unreadable import Unreadable, readable
from virtue_jax.embedding.embedder import Embedder

PART = 1024  # examples that are embedded again where one of them turns out bad


def unreadable_headers(
    examples: Sequence[Example], embedder: Embedder, progress: Callable[[int], None] | None = None
) -> dict[int, Unreadable]:
    """{place in `examples`: what is wrong with it}, as far as headers show it; no model runs."""
    bad = {}
    for number, example in enumerate(examples):
        checked = readable(example.origin, check_example, example, embedder.encoder)
        if isinstance(checked, Unreadable):
            bad[number] = checked
        if progress is not None:
            progress(number + 1)
    return bad


def embed_readable(
    embedder: Embedder, examples: Sequence[Example], progress: Callable[[int], None] | None = None
) -> tuple[np.ndarray, dict[int, Unreadable]]:
    """(float32[N, D], {place in `examples`: what is wrong with it}); vectors of bad ones are zeros.

    Raises:
        Exception: whatever embedding raises that is no single example's fault.
    """
    parts, bad = [], {}
    for start in range(0, max(len(examples), 1), PART):
        counted = None if progress is None else lambda done, start=start: progress(start + done)
        vectors, unreadable = _embed_part(embedder, examples[start : start + PART], counted)
        parts.append(vectors)
        bad |= {start + place: problem for place, problem in unreadable.items()}
    return np.concatenate(parts), bad


def _embed_part(
    embedder: Embedder, examples: Sequence[Example], progress: Callable[[int], None] | None
) -> tuple[np.ndarray, dict[int, Unreadable]]:
    try:
        return embedder.embed(examples, progress=progress), {}
    except Exception:
        bad = _unreadable(embedder, examples)
        if not bad:
            raise
    good = [number for number in range(len(examples)) if number not in bad]
    vectors = embedder.embed([examples[number] for number in good], progress=progress)
    out = np.zeros((len(examples), *vectors.shape[1:]), np.float32)
    out[good] = vectors
    return out, bad


def _unreadable(embedder: Embedder, examples: Sequence[Example]) -> dict[int, Unreadable]:
    bad = {}
    for number, example in enumerate(examples):
        encoded = readable(example.origin, embedder.encoder.encode, example)
        if isinstance(encoded, Unreadable):
            bad[number] = encoded
    return bad
