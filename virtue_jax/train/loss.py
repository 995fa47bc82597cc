"""InfoNCE over embedding slots (paper section 3.3; van den Oord et al. 2018, eq. 4), in float32."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from virtue_jax.batch import QUERY, TARGET

_NEVER = -1e9  # finite, so that a masked logit has a zero and not a NaN gradient


class Slots(NamedTuple):
    """Embedding slots of all row groups: embeddings float32[S, D] unit length; side, pair int32[S]; valid bool[S]."""

    embeddings: jax.Array
    side: jax.Array
    pair: jax.Array
    valid: jax.Array


def contrastive_loss(slots: Slots, temperature: float) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean over queries of -log softmax(positive against all targets), and what is worth watching.

    A query's positive is the first target slot with its pair id. Further targets with that id are the same positive
    again (two queries with one answer) and count neither as positives nor as negatives. Targets whose id no query
    has are hard negatives of every query.

    Returns:
        (loss, metrics): float32 scalars; metrics has `queries` (with a positive), `unmatched` (without one: left
        out of the mean), `accuracy` (positive above every negative), `positive_similarity`, `negative_similarity`.
    """
    z = slots.embeddings.astype(jnp.float32)
    is_query = slots.valid & (slots.side == QUERY)
    is_target = slots.valid & (slots.side == TARGET)
    match = is_query[:, None] & is_target[None, :] & (slots.pair[:, None] == slots.pair[None, :])
    counted = match.any(axis=1)
    negative = is_target[None, :] & ~match

    similarity = jnp.einsum("qd,td->qt", z, z, preferred_element_type=jnp.float32)
    # A row-wise dot product, not a gather from `similarity`: under sharding it needs no second all-gather.
    positive = jnp.sum(z * z[jnp.argmax(match, axis=1)], axis=-1)
    hardest = jnp.where(negative, similarity, _NEVER)
    logits = jnp.concatenate([positive[:, None], hardest], axis=1) / temperature
    per_query = jax.nn.logsumexp(logits, axis=1) - positive / temperature

    def mean(x):
        return jnp.sum(jnp.where(counted, x, 0.0)) / jnp.maximum(counted.sum(), 1)

    negatives = jnp.maximum(negative.sum(axis=1), 1)
    metrics = {
        "queries": counted.sum(),
        "unmatched": (is_query & ~counted).sum(),
        "accuracy": mean((positive > hardest.max(axis=1)).astype(jnp.float32)),
        "positive_similarity": mean(positive),
        "negative_similarity": mean(jnp.where(negative, similarity, 0.0).sum(axis=1) / negatives),
    }
    return mean(per_query), metrics
