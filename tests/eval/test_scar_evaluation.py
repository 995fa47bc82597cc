"""SCaR's evaluation, asked with embedders whose answers are known."""

import numpy as np
import pytest

from virtue_jax.data.encoding.images import load_image
from virtue_jax.data.formats.scar import ScarEvaluation
from virtue_jax.data.scenes import write_scenes
from virtue_jax.eval.report import plot_report, print_report
from virtue_jax.eval.scar import Labels, Scores, evaluate_scar, summarise

TYPES = ("gt", *["global_context"] * 3, *["background_relation"] * 3, *["object_swap"] * 3)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, train=0, eval=12, seed=3, width=(64, 80), height=(64, 80), objects=(1, 4))
    return ScarEvaluation(folder)


class Oracle:
    """Embeds a caption as a basis vector of its own, and a query as the caption of the object whose box it carries."""

    def __init__(self, questions):
        rows = [questions[row] for row in range(len(questions))]
        texts = sorted({text for q in rows for text in q.candidates})
        self.place = {text: i for i, text in enumerate(texts)}
        self.caption = {(q.query.images[0], q.query.prompt.box): q.candidates[q.answer] for q in rows}

    def embed(self, examples):
        out = np.zeros((len(examples), len(self.place)), np.float32)
        for i, example in enumerate(examples):
            if not example.images:
                out[i, self.place[example.text]] = 1
            elif example.prompt is not None:
                out[i, self.place[self.caption[example.images[0], example.prompt.box]]] = 1
        return out


class Constant:
    """Embeds everything alike."""

    def embed(self, examples):
        return np.ones((len(examples), 2), np.float32)


def test_an_oracle_is_right_with_the_true_prompt_and_wrong_with_another(questions):
    report = evaluate_scar(Oracle(questions), questions)
    assert report["prompt"]["hit@1"] == 1 and report["prompt"]["questions"] == len(questions)
    assert report["wrong"]["hit@1"] == 0
    assert report["none"]["hit@1"] == 0 and report["crop"]["hit@1"] == 0  # nothing is embedded: every score is a tie
    assert set(report["prompt"]["types"]) == set(TYPES[1:])


def test_images_with_one_object_have_no_wrong_prompt(questions):
    alone = sum(len(rows) == 1 for rows in questions.rows_by_image().values())
    assert alone > 0
    report = evaluate_scar(Oracle(questions), questions, modes=["wrong"])
    assert report["wrong"]["questions"] == len(questions) - alone


def test_a_tie_is_a_miss(questions):
    with pytest.raises(ValueError, match="limit is 0: expected at least 1"):
        evaluate_scar(Constant(), questions, modes=["prompt"], limit=0)
    report = evaluate_scar(Constant(), questions, modes=["prompt"], limit=5)
    assert report["prompt"]["hit@1"] == 0 and report["prompt"]["questions"] == 5


def test_unknown_modes_are_refused(questions):
    with pytest.raises(ValueError, match="'blind'"):
        evaluate_scar(Constant(), questions, modes=["blind"])


def test_hits_are_counted_overall_by_data_set_and_by_distractor_type():
    score = np.zeros((3, 10), np.float32)
    score[0, 0] = 1  # right
    score[1, [0, 5]] = 1, 2  # a relation swap above the truth
    score[2, [0, 9]] = 1, 3  # an object swap above the truth
    labels = Labels(np.array(["A", "A", "B"]), np.array([TYPES] * 3), np.zeros(3, int))
    result = summarise({"prompt": [Scores(np.arange(3), score)]}, labels)["prompt"]
    assert result["hit@1"] == pytest.approx(1 / 3)
    assert result["datasets"]["A"] == {"questions": 2, "hit@1": 0.5} and result["datasets"]["B"]["hit@1"] == 0
    by_type = result["types"]
    assert by_type["global_context"] == {"hit@1": 1.0, "chosen": 0.0}
    assert by_type["object_swap"] == pytest.approx({"hit@1": 2 / 3, "chosen": 1 / 3})
    assert by_type["background_relation"] == pytest.approx({"hit@1": 2 / 3, "chosen": 1 / 3})


def test_the_answer_need_not_stand_first():
    score = np.zeros((1, 10), np.float32)
    score[0, 4] = 1
    types = np.array([["x"] * 4 + ["gt"] + ["x"] * 5])
    result = summarise({"none": [Scores(np.zeros(1, int), score)]}, Labels(np.array(["A"]), types, np.array([4])))
    assert result["none"]["hit@1"] == 1


def test_report_is_printed_and_plotted(questions, tmp_path):
    from rich.console import Console

    console = Console(record=True, width=140)
    report = evaluate_scar(Oracle(questions), questions)
    print_report(report, console)
    text = console.export_text()
    assert "true prompt" in text and "100.0" in text and "vs object" in text
    plot_report(report, tmp_path / "plot.png")
    assert load_image(tmp_path / "plot.png", "plot").shape[1] == 1200
