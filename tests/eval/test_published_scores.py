"""Rankings and metrics against the score files of the released evaluation code."""

import json
from pathlib import Path

import numpy as np
import pytest

from virtue_jax.eval.metrics import beats, ranked_metrics, ranking

GOLDEN = Path(__file__).parents[1] / "golden/benchmarks/scores"
FILES = sorted(GOLDEN.glob("*/*_pred.jsonl"))


def rankings(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_scores_are_those_of_the_released_code(file):
    expected = json.loads(file.with_name(file.name.replace("_pred.jsonl", "_score.json")).read_text())
    found = [ranked_metrics(row["prediction"], row["label"]) for row in rankings(file)]
    assert len(found) == expected.pop("num_pred") == expected.pop("num_data")
    for name, value in expected.items():
        ours = name.replace("_linear", "").replace("_exponential", "")  # the same where a candidate is right or wrong
        np.testing.assert_allclose(np.mean([scores[ours] for scores in found]), value, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_rankings_are_those_of_the_released_code_ties_included(file):
    """Ties keep the candidates' order."""
    keys, vectors = json.loads((file.parent / "keys.json").read_text()), np.load(file.parent / "vectors.npz")
    tied = "_tied" if file.name.startswith("tied") else ""
    place = {key: i for i, key in enumerate(keys["candidates"])}
    queries, candidates = vectors[f"queries{tied}"], vectors[f"candidates{tied}"]
    for query, vector, row in zip(keys["queries"], queries, rankings(file), strict=True):
        own = keys["candidates"] if file.name.startswith("global") else query["candidates"]
        score = candidates[[place[key] for key in own]] @ vector
        assert [own[i] for i in ranking(score)] == row["prediction"]


def test_there_is_something_to_compare():
    assert len(FILES) == 10
    assert any(len(set(row["prediction"])) < len(row["prediction"]) for file in FILES for row in rankings(file))


def test_several_right_candidates_and_a_short_ranking():
    found = ranked_metrics(["b", "a", "x"], {"a", "b", "c"}, [2, 5])
    assert found["hit@2"] == found["precision@2"] == found["ndcg@2"] == found["map@2"] == 1
    assert found["recall@2"] == pytest.approx(2 / 3) and found["precision@5"] == pytest.approx(2 / 5)
    assert found["map@5"] == pytest.approx(2 / 3)
    assert not any(ranked_metrics(["x"], {"a"}).values())


def test_a_tie_with_a_rival_is_a_miss_and_one_with_another_right_candidate_is_not():
    true = np.array([True, False, True])
    assert not beats(np.array([1.0, 1.0, 0.0]), true, ~true)
    assert beats(np.array([1.0, 0.5, 1.0]), true, np.ones(3, bool))
