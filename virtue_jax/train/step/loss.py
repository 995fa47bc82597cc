"""InfoNCE over embedding slots (paper section 3.3; van den Oord et al. 2018, eq. 4), in float32."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from virtue_jax.batch import QUERY, TARGET
from virtue_jax.parallel.collective import Axis, gather, total
from virtue_jax.parallel.constrain import ROWS, constrain

_NEVER = -1e9  # finite, so that a masked logit has a zero and not a NaN gradient
_LAST = jnp.iinfo(jnp.int32).max


@dataclass(frozen=True)
class LossConfig:
    """temperature: fixed, or where a learnt one starts. symmetric: the mean of query -> target and target -> query.

    mask_duplicates: whether a target with the content of a query's positive is no negative of it (two queries with one
    answer); False is the released code, which pushes such targets away.
    """

    temperature: float = 0.02
    learn_temperature: bool = False
    symmetric: bool = False
    mask_duplicates: bool = True

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"loss.temperature: {self.temperature}: expected a number above 0")


class Slots(NamedTuple):
    """Embedding slots of this device's rows: embeddings float32[S, D] unit length; side, content int32[S];
    positives int32[S, A]; valid bool[S] (`virtue_jax/batch.py`). place int32[S]: number of the slot in the whole batch,
    the same on every mesh, by which the first of several equal contents is told."""

    embeddings: jax.Array
    side: jax.Array
    content: jax.Array
    positives: jax.Array
    valid: jax.Array
    place: jax.Array

    @property
    def is_query(self):
        return self.valid & (self.side == QUERY)

    @property
    def is_target(self):
        return self.valid & (self.side == TARGET)


def contrastive_loss(
    slots: Slots, temperature, config: LossConfig, axis: Axis = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean over all queries of -log softmax(positive against all targets of all devices), and what is worth watching.

    A query's positive is the first target slot with that content; with several positives, its loss is their mean, each
    against the negatives alone. Targets whose content no positive of a query has are its negatives, whether they are
    other queries' positives or nobody's (hard negatives).

    Args:
        slots: of one part of the rows, where `axis` names the mapped mesh axis that holds the parts.
        temperature: float32 scalar, may be learnt.

    Returns:
        (share, metrics): this part's share of the loss, whose sum over `axis` is the mean over all queries, and whose
        gradient is that mean's once summed; float32 metrics of the whole: `loss`, `queries` (with a positive),
        `unmatched` (without one: left out of the mean), `accuracy` (positive above every negative),
        `positive_similarity`, `negative_similarity`.
    """
    everything = jax.tree.map(lambda x: constrain(gather(x, axis)), slots)
    share, metrics = _to_targets(slots, everything, temperature, config, axis)
    if config.symmetric:
        share = (share + _to_queries(slots, everything, temperature, axis)) / 2
    return share, metrics | {"loss": total(share, axis)}


def _to_targets(slots: Slots, targets: Slots, temperature, config: LossConfig, axis: Axis):
    z = slots.embeddings.astype(jnp.float32)
    wanted = jnp.where(slots.is_query[:, None], slots.positives, -1)
    content = jnp.where(targets.is_target, targets.content, -2)
    similarity = _similarity(z, targets.embeddings)
    match = _matches(wanted, content)  # [A][S, T]

    def first(matches):
        return jnp.argmin(jnp.where(matches, targets.place, _LAST), axis=1)

    same = jnp.zeros_like(match[0])
    for matches in match:
        same |= (
            matches if config.mask_duplicates else jax.nn.one_hot(first(matches), len(content), dtype=bool) & matches
        )
    negative = targets.is_target[None, :] & ~same
    hardest = jnp.where(negative, similarity, _NEVER)
    against = jax.nn.logsumexp(hardest / temperature, axis=1)
    has = jnp.stack([matches.any(axis=1) for matches in match], axis=1)  # [S, A]
    # A row-wise dot product, not a gather from `similarity`: it differentiates into rows, not into a whole matrix.
    positive = jnp.stack([jnp.sum(z * targets.embeddings[first(matches)], axis=-1) for matches in match], axis=1)
    per_positive = jax.nn.softplus(against[:, None] - positive / temperature)
    per_query = _mean(per_positive, has, axis=1)

    counted = has.any(axis=1)
    count = jnp.maximum(total(counted.sum(), axis), 1)
    share = jnp.sum(jnp.where(counted, per_query, 0.0)) / count

    def mean(x):
        return total(jnp.sum(jnp.where(counted, x, 0.0)), axis) / count

    best = jnp.where(has, positive, _NEVER).max(axis=1)
    return share, {
        "queries": total(counted.sum(), axis),
        "unmatched": total((slots.is_query & ~counted).sum(), axis),
        "accuracy": mean((best > hardest.max(axis=1)).astype(jnp.float32)),
        "positive_similarity": mean(_mean(positive, has, axis=1)),
        "negative_similarity": mean(_mean(similarity, negative, axis=1)),
    }


def _to_queries(slots: Slots, queries: Slots, temperature, axis: Axis):
    """The other direction: every target that is somebody's positive, the first of its content, against all queries."""
    z = slots.embeddings.astype(jnp.float32)
    content = jnp.where(slots.is_target, slots.content, -2)
    wanted = jnp.where(queries.is_query[:, None], queries.positives, -1)
    match = jnp.any(content[:, None, None] == wanted[None], axis=2)
    similarity = _similarity(z, queries.embeddings)
    negative = queries.is_query[None, :] & ~match
    against = jax.nn.logsumexp(jnp.where(negative, similarity, _NEVER) / temperature, axis=1)
    per_target = _mean(jax.nn.softplus(against[:, None] - similarity / temperature), match, axis=1)
    earlier = queries.place[None, :] < slots.place[:, None]
    repeated = (earlier & queries.is_target[None, :] & (queries.content[None, :] == content[:, None])).any(axis=1)
    counted = match.any(axis=1) & ~repeated
    return jnp.sum(jnp.where(counted, per_target, 0.0)) / jnp.maximum(total(counted.sum(), axis), 1)


def _similarity(rows, columns):
    """float32[S, T]: rows stay on their devices; memory grows as the local rows times all columns.

    In full precision: matrix units would round to bfloat16 first, which at a temperature of 0.02 shows.
    """
    return constrain(jnp.einsum("sd,td->st", rows, columns.astype(jnp.float32), precision="highest"), ROWS)


def _matches(wanted, content) -> list[jax.Array]:
    return [constrain(wanted[:, a, None] == content[None, :], ROWS) for a in range(wanted.shape[1])]


def _mean(x, where, axis: int):
    return jnp.where(where, x, 0.0).sum(axis) / jnp.maximum(where.sum(axis), 1)
