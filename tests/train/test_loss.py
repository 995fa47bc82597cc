import jax
import numpy as np
import pytest

from virtue_jax.batch import QUERY, TARGET
from virtue_jax.train.loss import Slots, contrastive_loss

T = 0.05


def slots(rng, sides, pairs, valid=None):
    z = rng.standard_normal((len(sides), 16)).astype(np.float32)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    valid = np.ones(len(sides), bool) if valid is None else np.asarray(valid, bool)
    return Slots(z, np.asarray(sides, np.int32), np.asarray(pairs, np.int32), valid)


def plain(s: Slots):
    """The definition, one query at a time in float64."""
    losses = []
    z = s.embeddings.astype(np.float64)
    for i in range(len(s.side)):
        if s.side[i] != QUERY or not s.valid[i]:
            continue
        targets = [j for j in range(len(s.side)) if s.side[j] == TARGET and s.valid[j]]
        own = [j for j in targets if s.pair[j] == s.pair[i]]
        if not own:
            continue
        logits = [z[i] @ z[own[0]] / T] + [z[i] @ z[j] / T for j in targets if s.pair[j] != s.pair[i]]
        losses.append(np.log(np.sum(np.exp(np.array(logits) - logits[0]))))
    return np.mean(losses)


CASES = {
    "pairs": ([QUERY] * 4 + [TARGET] * 4, [0, 1, 2, 3, 0, 1, 2, 3], None),
    "targets in another order": ([QUERY] * 3 + [TARGET] * 3, [5, 6, 7, 7, 5, 6], None),
    "hard negatives": ([QUERY] * 2 + [TARGET] * 6, [0, 1, 0, 1, -1, -1, -1, -1], None),
    "one answer twice": ([QUERY] * 3 + [TARGET] * 3, [4, 4, 9, 4, 4, 9], None),
    "unused slots": ([QUERY] * 3 + [TARGET] * 4, [0, 1, 2, 0, 1, 2, 2], [1, 1, 0, 1, 1, 1, 0]),
    "a query without its positive": ([QUERY] * 3 + [TARGET] * 2, [0, 1, 2, 0, 1], None),
    "mixed order": ([TARGET, QUERY, TARGET, QUERY], [1, 2, 2, 1], None),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_is_the_plain_definition(case):
    s = slots(np.random.default_rng(0), *CASES[case])
    loss, metrics = contrastive_loss(s, T)
    np.testing.assert_allclose(loss, plain(s), rtol=1e-5)
    assert metrics["unmatched"] == (1 if case == "a query without its positive" else 0)


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_finite_and_right(case):
    s = slots(np.random.default_rng(1), *CASES[case])
    grad = jax.grad(lambda z: contrastive_loss(s._replace(embeddings=z), T)[0])(s.embeddings)
    assert np.isfinite(grad).all()
    direction = np.random.default_rng(2).standard_normal(grad.shape)
    step = 1e-4
    ahead, behind = (plain(s._replace(embeddings=s.embeddings + sign * step * direction)) for sign in (1, -1))
    np.testing.assert_allclose((grad * direction).sum(), (ahead - behind) / (2 * step), rtol=2e-3, atol=1e-5)


def test_invalid_slots_get_no_gradient():
    s = slots(np.random.default_rng(3), *CASES["unused slots"])
    grad = jax.grad(lambda z: contrastive_loss(s._replace(embeddings=z), T)[0])(s.embeddings)
    assert (np.asarray(grad)[~s.valid] == 0).all()


def test_accuracy_counts_positives_above_every_negative():
    z = np.eye(4, dtype=np.float32)
    s = Slots(
        np.concatenate([z[:2], z[[0, 2]]]),
        np.array([0, 0, 1, 1], np.int32),
        np.array([0, 1, 0, 1], np.int32),
        np.ones(4, bool),
    )
    assert contrastive_loss(s, T)[1]["accuracy"] == 0.5
