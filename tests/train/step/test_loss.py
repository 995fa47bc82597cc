import jax
import jax.numpy as jnp
import numpy as np
import pytest

from virtue_jax.batch import QUERY, TARGET
from virtue_jax.train.step.loss import LossConfig, Slots, contrastive_loss

T = 0.05
Q, C = QUERY, TARGET
PLAIN = LossConfig(T)


def slots(rng, sides, contents, valid=None, extra=()):
    """contents: of a target, or of a query's first positive. extra: (slot, content) of further positives."""
    z = rng.standard_normal((len(sides), 16)).astype(np.float32)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    sides, contents = np.asarray(sides, np.int32), np.asarray(contents, np.int32)
    positives = np.full((len(sides), 2), -1, np.int32)
    positives[:, 0] = np.where(sides == Q, contents, -1)
    for slot, content in extra:
        positives[slot, 1] = content
    valid = np.ones(len(sides), bool) if valid is None else np.asarray(valid, bool)
    contents = np.where(sides == C, contents, -1).astype(np.int32)
    return Slots(z, sides, contents, positives, valid, np.arange(len(sides), dtype=np.int32))


def to_targets(s: Slots, z, mask=True):
    """The definition, one query at a time in float64."""
    losses = []
    targets = [j for j in range(len(s.side)) if s.side[j] == C and s.valid[j]]
    for i in (i for i in range(len(s.side)) if s.side[i] == Q and s.valid[i]):
        own = {c: [j for j in targets if s.content[j] == c] for c in s.positives[i] if c >= 0}
        firsts = [same[0] for same in own.values() if same]
        if not firsts:
            continue
        left_out = [j for same in own.values() for j in same] if mask else firsts
        negatives = [z[i] @ z[j] / T for j in targets if j not in left_out]
        terms = [np.log(np.sum(np.exp(np.array([z[i] @ z[p] / T, *negatives]) - z[i] @ z[p] / T))) for p in firsts]
        losses.append(np.mean(terms))
    return np.mean(losses)


def to_queries(s: Slots, z):
    losses, seen = [], set()
    queries = [i for i in range(len(s.side)) if s.side[i] == Q and s.valid[i]]
    for j in (j for j in range(len(s.side)) if s.side[j] == C and s.valid[j]):
        own = [i for i in queries if s.content[j] in s.positives[i]]
        if not own or s.content[j] in seen:
            continue
        seen.add(s.content[j])
        negatives = [z[i] @ z[j] / T for i in queries if i not in own]
        terms = [np.log(np.sum(np.exp(np.array([z[i] @ z[j] / T, *negatives]) - z[i] @ z[j] / T))) for i in own]
        losses.append(np.mean(terms))
    return np.mean(losses)


def defined(s: Slots, z, config: LossConfig):
    z = np.asarray(z, np.float64)
    there = to_targets(s, z, config.mask_duplicates)
    return (there + to_queries(s, z)) / 2 if config.symmetric else there


CASES = {
    "pairs": ([Q] * 4 + [C] * 4, [0, 1, 2, 3, 0, 1, 2, 3]),
    "targets in another order": ([Q] * 3 + [C] * 3, [5, 6, 7, 7, 5, 6]),
    "hard negatives": ([Q] * 2 + [C] * 6, [0, 1, 0, 1, 11, 12, 13, 13]),
    "one answer twice": ([Q] * 3 + [C] * 3, [4, 4, 9, 4, 4, 9]),
    "unused slots": ([Q] * 3 + [C] * 4, [0, 1, 2, 0, 1, 2, 2], [1, 1, 0, 1, 1, 1, 0]),
    "a query without its positive": ([Q] * 3 + [C] * 2, [0, 1, 2, 0, 1]),
    "mixed order": ([C, Q, C, Q], [1, 2, 2, 1]),
    "several positives": ([Q] * 3 + [C] * 5, [0, 1, 2, 0, 1, 2, 7, 8], None, [(0, 7), (1, 99)]),
    "a hard negative that is somebody's positive": ([Q] * 3 + [C] * 4, [0, 1, 2, 0, 1, 2, 1]),
}
CONFIGS = {
    "plain": PLAIN,
    "symmetric": LossConfig(T, symmetric=True),
    "duplicates as negatives": LossConfig(T, mask_duplicates=False),
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("case", CASES)
def test_loss_is_the_plain_definition(case, kind):
    s = slots(np.random.default_rng(0), *CASES[case])
    share, metrics = contrastive_loss(s, T, CONFIGS[kind])
    np.testing.assert_allclose(share, defined(s, s.embeddings, CONFIGS[kind]), rtol=1e-5)
    assert metrics["loss"] == share
    assert metrics["unmatched"] == (1 if case == "a query without its positive" else 0)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("case", CASES)
def test_gradient_is_finite_and_right(case, kind):
    s = slots(np.random.default_rng(1), *CASES[case])
    grad = jax.grad(lambda z: contrastive_loss(s._replace(embeddings=z), T, CONFIGS[kind])[0])(s.embeddings)
    assert np.isfinite(grad).all()
    direction, step = np.random.default_rng(2).standard_normal(grad.shape), 1e-4
    ahead, behind = (defined(s, s.embeddings + sign * step * direction, CONFIGS[kind]) for sign in (1, -1))
    np.testing.assert_allclose((grad * direction).sum(), (ahead - behind) / (2 * step), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_order_in_which_slots_arrive_changes_nothing(kind):
    s = slots(np.random.default_rng(7), *CASES["a hard negative that is somebody's positive"])
    shuffled = Slots(*(x[np.random.default_rng(8).permutation(len(s.side))] for x in s))
    share, expected = (contrastive_loss(x, T, CONFIGS[kind])[0] for x in (shuffled, s))
    np.testing.assert_allclose(share, expected, rtol=1e-6)


def test_similarities_are_asked_for_in_full_precision():
    s = slots(np.random.default_rng(9), *CASES["pairs"])
    program = jax.jit(lambda z: contrastive_loss(s._replace(embeddings=z), T, PLAIN)[0]).lower(s.embeddings).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert products and all("HIGHEST" in line for line in products)


def test_invalid_slots_get_no_gradient():
    s = slots(np.random.default_rng(3), *CASES["unused slots"])
    grad = jax.grad(lambda z: contrastive_loss(s._replace(embeddings=z), T, PLAIN)[0])(s.embeddings)
    assert (np.asarray(grad)[~s.valid] == 0).all()


def test_the_temperature_gets_its_gradient():
    s = slots(np.random.default_rng(4), *CASES["hard negatives"])
    slope = jax.grad(lambda t: contrastive_loss(s, t, PLAIN)[0])(jnp.float32(T))
    step = 1e-3
    ahead, behind = (float(contrastive_loss(s, jnp.float32(T + d), PLAIN)[0]) for d in (step, -step))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=2e-3)


def test_a_lone_query_without_negatives_costs_nothing():
    s = slots(np.random.default_rng(5), [Q, C], [3, 3])
    share, metrics = contrastive_loss(s, T, PLAIN)
    assert share == 0 and metrics["queries"] == 1


def test_no_query_at_all_is_a_loss_of_zero_and_no_nan():
    s = slots(np.random.default_rng(6), [Q, C], [3, 3], [False, True])
    share, grad = jax.value_and_grad(lambda z: contrastive_loss(s._replace(embeddings=z), T, PLAIN)[0])(s.embeddings)
    assert share == 0 and (np.asarray(grad) == 0).all()


def test_accuracy_counts_positives_above_every_negative():
    z = np.eye(4, dtype=np.float32)
    s = slots(np.random.default_rng(0), [Q, Q, C, C], [0, 1, 0, 1])
    s = s._replace(embeddings=np.concatenate([z[:2], z[[0, 2]]]))
    assert contrastive_loss(s, T, PLAIN)[1]["accuracy"] == 0.5
