"""SCaR: find the caption of the object pointed at among ten (paper section 4; hit@1, ground truth first).

Asked in up to four ways, which tell whether the visual prompt is what finds it: with the true prompt, without any, with
the prompt of another object of the same image, and on a crop of the object instead of a prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from virtue_jax.data.encoding.images import crop
from virtue_jax.data.example import Example
from virtue_jax.data.formats.scar import ScarEvaluation, ScarQuestion
from virtue_jax.embedding.embedder import Embedder

MODES = ("prompt", "none", "wrong", "crop")
_BLOCK = 512  # questions in work at once


@dataclass(frozen=True)
class Scores:
    """All questions of one mode: score float32[n, 10] of each candidate, `rows` int[n] of the source."""

    rows: np.ndarray
    score: np.ndarray


@dataclass(frozen=True)
class Labels:
    """What the questions are, by row: dataset names, candidate types [N, 10], index of the true caption [N]."""

    dataset: np.ndarray
    types: np.ndarray
    answer: np.ndarray


def evaluate_scar(
    embedder: Embedder,
    questions: ScarEvaluation,
    *,
    modes: Sequence[str] = MODES,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict:
    """Hit@1 per mode: overall, by data set, and by distractor type. The report is JSON-able; see `summarise`.

    A question whose image shows no other object has no `wrong` prompt and is left out of that mode, whose `questions`
    then counts fewer. limit: only the first so many rows. progress: called with the number of queries done.

    Raises:
        ValueError: unknown modes. InvalidExample: a row that cannot be read; names it.
    """
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise ValueError(f"modes {list(modes)}: expected some of {', '.join(MODES)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}: expected at least 1 question")
    total = len(questions) if limit is None else min(limit, len(questions))
    neighbours = _other_objects(questions)
    scores: dict[str, list[Scores]] = {mode: [] for mode in modes}
    labels = []
    done = 0
    for start in range(0, total, _BLOCK):
        block = [questions[row] for row in range(start, min(start + _BLOCK, total))]
        labels += [(q.dataset, q.types, q.answer) for q in block]
        candidates = _embed_candidates(embedder, block)
        for mode in modes:
            asked = [(q, query) for q in block if (query := _query(mode, q, questions, neighbours)) is not None]
            z = embedder.embed([query for _, query in asked])
            score = [candidates[q.row - start] @ z[i] for i, (q, _) in enumerate(asked)]
            scores[mode].append(Scores(np.array([q.row for q, _ in asked], int), np.array(score).reshape(-1, 10)))
            done += len(asked)
            if progress is not None:
                progress(done)
    dataset, types, answer = zip(*labels, strict=True)
    return summarise(scores, Labels(np.array(dataset), np.array(types), np.array(answer)))


def summarise(scores: Mapping[str, Sequence[Scores]], labels: Labels) -> dict:
    """{mode: {"questions", "hit@1", "datasets": {name: {...}}, "types": {type: {"hit@1", "chosen"}}}}.

    hit@1: the true caption scores above all nine others (a tie is a miss). By type, `hit@1` ranks it against the
    distractors of that type alone (chance 1 in 4), and `chosen` is how often one of them came out first of all ten.
    """
    report = {}
    for mode, parts in scores.items():
        rows = np.concatenate([part.rows for part in parts])
        score = np.concatenate([part.score for part in parts])
        dataset, types, answer = labels.dataset[rows], labels.types[rows], labels.answer[rows]
        hit = _hits(score, answer, np.ones_like(score, bool))
        best = types[np.arange(len(rows)), score.argmax(axis=1)] if len(rows) else types[:, 0]
        kinds = [str(kind) for kind in dict.fromkeys(types.ravel().tolist()) if kind != "gt"]
        report[mode] = {
            "questions": len(rows),
            "hit@1": _mean(hit),
            "datasets": {
                str(name): {"questions": int((dataset == name).sum()), "hit@1": _mean(hit[dataset == name])}
                for name in np.unique(dataset)
            },
            "types": {
                kind: {"hit@1": _mean(_hits(score, answer, types == kind)), "chosen": _mean((best == kind) & ~hit)}
                for kind in kinds
            },
        }
    return report


def _hits(score: np.ndarray, answer: np.ndarray, rivals: np.ndarray) -> np.ndarray:
    """bool[n]: whether the true candidate scores above every rival (bool[n, 10], itself excluded)."""
    true = np.take_along_axis(score, answer[:, None], axis=1)
    others = rivals & (np.arange(score.shape[1]) != answer[:, None])
    return (np.where(others, score, -np.inf) < true).all(axis=1)


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _embed_candidates(embedder: Embedder, block: Sequence[ScarQuestion]) -> np.ndarray:
    """float32[n, 10, D]; each distinct text is embedded once."""
    texts = {text: i for i, text in enumerate(dict.fromkeys(t for q in block for t in q.candidates))}
    z = embedder.embed([Example(text, origin=f"candidate {text!r}") for text in texts])
    return z[[[texts[text] for text in q.candidates] for q in block]]


def _other_objects(questions: ScarEvaluation) -> dict[int, int]:
    """{row: another row that asks about another box of the same image}."""
    other = {}
    for rows in questions.rows_by_image().values():
        for i, row in enumerate(rows):
            box = questions.box(row)
            different = [r for r in rows[i + 1 :] + rows[:i] if questions.box(r) != box]
            if different:
                other[row] = different[0]
    return other


def _query(mode: str, question: ScarQuestion, questions: ScarEvaluation, neighbours: dict[int, int]) -> Example | None:
    query = question.query
    if mode == "prompt":
        return query
    if mode == "none":
        return replace(query, prompt=None)
    if mode == "crop":
        return replace(query, prompt=None, images=(crop(query.images[0], question.box, query.origin),))
    other = neighbours.get(question.row)
    return None if other is None else replace(query, prompt=questions[other].query.prompt)
