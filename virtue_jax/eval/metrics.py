"""Metrics of ranked candidates: plain numpy, one question at a time; a score of a data set is their mean.

Where a candidate stands in a ranking several times, hit, precision, recall, F1 and MRR count a right one once; MAP and
nDCG count every repeat, as the published scores of MMEB do (both may exceed 1 there).
"""

from collections.abc import Collection, Hashable, Sequence

import numpy as np

CUTOFFS = (1, 5, 10)


def ranking(score: np.ndarray) -> np.ndarray:
    """int[n]: candidates by score[n], best first; those of equal scores keep their order, on every machine."""
    return np.argsort(-np.asarray(score), kind="stable")


def ranked_metrics(
    ranked: Sequence[Hashable], labels: Collection[Hashable], cutoffs: Sequence[int] = CUTOFFS
) -> dict[str, float]:
    """{"hit@k", "precision@k", "recall@k", "f1@k", "mrr@k", "map@k", "ndcg@k"} of one question.

    ranked: keys of the candidates, best first. labels: keys of the right ones, at least one. A ranking shorter than k
    counts as one whose rest is wrong.
    """
    labels = set(labels)
    right = np.array([key in labels for key in ranked], bool)
    first = right & ~_repeated(ranked)
    return {name: value for k in cutoffs for name, value in _at(k, right[:k], first[:k], len(labels)).items()}


def _at(k: int, right: np.ndarray, first: np.ndarray, labels: int) -> dict[str, float]:
    counted, places = int(first.sum()), np.flatnonzero(right)
    precision, recall = counted / k, counted / labels
    discount = 1 / np.log2(np.arange(2, k + 2))
    precisions = (np.arange(len(places)) + 1) / (places + 1)
    return {
        f"hit@{k}": float(counted > 0),
        f"precision@{k}": precision,
        f"recall@{k}": recall,
        f"f1@{k}": 2 * precision * recall / (precision + recall) if counted else 0.0,
        f"mrr@{k}": float(1 / (places[0] + 1)) if counted else 0.0,
        f"map@{k}": float(precisions.sum() / min(labels, k)),
        f"ndcg@{k}": float(discount[: len(right)][right].sum() / discount[: min(labels, k)].sum()),
    }


def beats(score: np.ndarray, true: np.ndarray, rivals: np.ndarray) -> bool:
    """Whether the best right candidate (bool[n] `true`) scores above every rival (bool[n]): a tie is a miss."""
    score = np.asarray(score)
    return bool((score[rivals & ~true] < score[true].max()).all())


def _repeated(ranked: Sequence[Hashable]) -> np.ndarray:
    """bool[n]: whether the same key stands before."""
    seen: set = set()
    repeated = np.zeros(len(ranked), bool)
    for i, key in enumerate(ranked):
        repeated[i] = key in seen
        seen.add(key)
    return repeated
