"""SCaR's evaluation, asked with embedders whose answers are known."""

import json
from pathlib import Path

import numpy as np
import pytest

from virtue_jax.config import Compat, from_dict, to_dict
from virtue_jax.data.encoding.images import load_image
from virtue_jax.data.example import Example
from virtue_jax.data.scenes import write_scenes
from virtue_jax.eval.config import EvalConfig
from virtue_jax.eval.evaluate import evaluate
from virtue_jax.eval.open_task import open_task
from virtue_jax.eval.plot import plot_result
from virtue_jax.eval.question import Question
from virtue_jax.eval.result import EvalResult, report, summarise
from virtue_jax.eval.table import print_table
from virtue_jax.eval.tasks.scar import Scar

PAPER = Compat.paper()
TYPES = ("gt", *["global_context"] * 3, *["background_relation"] * 3, *["object_swap"] * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, train=0, eval=12, seed=3, width=(64, 80), height=(64, 80), objects=(1, 4))
    return folder


def scar(folder, *modes, compat: Compat = PAPER, **settings) -> Scar:
    return open_task(EvalConfig(str(folder), modes=modes, **settings), compat)


def test_the_released_query_has_a_space_after_its_image(folder):
    paper, released = (scar(folder, compat=compat).question(0).query for compat in (PAPER, Compat.released()))
    assert released.text == paper.text.replace("<|image_1|>", "<|image_1|> ") and "<|image_1|>" in paper.text


class Oracle:
    """Embeds a caption as a basis vector of its own, and a query as the caption of the object whose box it carries."""

    def __init__(self, task):
        questions = [task.question(row) for row in range(len(task))]
        self.place = {text: i for i, text in enumerate(sorted({text for q in questions for text in q.keys}))}
        self.caption = {(q.query.images[0], q.query.prompt.box): next(iter(q.labels)) for q in questions}
        self.texts = []

    def embed(self, examples, progress=None):
        out = np.zeros((len(examples), len(self.place)), np.float32)
        for i, example in enumerate(examples):
            if not example.images:
                self.texts.append(example.text)
                out[i, self.place[example.text]] = 1
            elif example.prompt is not None:
                out[i, self.place[self.caption[example.images[0], example.prompt.box]]] = 1
        return out


class Constant:
    """Embeds everything alike."""

    def embed(self, examples, progress=None):
        return np.ones((len(examples), 2), np.float32)


def test_an_oracle_is_right_with_the_true_prompt_and_wrong_with_another(folder):
    task = scar(folder)
    found = evaluate(task, Oracle(task)).results
    assert found["prompt"].metrics == {"hit@1": 1.0} and found["prompt"].questions == len(task)
    assert found["wrong"].metrics == {"hit@1": 0.0}
    for mode in ("none", "crop"):  # nothing is embedded: every score is a tie
        assert found[mode].metrics == {"hit@1": 0.0}
    assert set(found["prompt"].types) == set(TYPES[1:])


def test_a_caption_of_many_questions_is_embedded_once(folder):
    task = scar(folder, "prompt")
    oracle = Oracle(task)
    evaluate(task, oracle)
    assert len(oracle.texts) == len(set(oracle.texts)) < 10 * len(task)


def test_images_with_one_object_have_no_wrong_prompt(folder):
    task = scar(folder, "wrong")
    alone = sum(len(rows) == 1 for rows in task._source.rows_by_image().values())
    assert alone > 0
    assert evaluate(task, Oracle(task)).results["wrong"].questions == len(task) - alone


def test_a_tie_is_a_miss_and_a_limit_is_kept(folder):
    with pytest.raises(ValueError, match="limit is -1: expected at least 1"):
        scar(folder, limit=-1)
    found = evaluate(scar(folder, "prompt", limit=5), Constant())
    assert found.score == 0 and found.results["prompt"].questions == 5


def test_unknown_modes_and_tasks_are_refused(folder):
    with pytest.raises(ValueError, match="'blind'"):
        scar(folder, "blind")
    with pytest.raises(ValueError, match="'scart' is not one of scar"):
        scar(folder, task="scart")


def question(kinds, row=0, dataset="A") -> Question:
    candidates = tuple(Example(f"caption {i}") for i in range(len(kinds)))
    keys = tuple(f"caption {i}" for i in range(len(kinds)))
    return Question(Example("?"), candidates, frozenset([keys[kinds.index("gt")]]), keys, tuple(kinds), dataset, row)


def test_hits_are_counted_overall_by_data_set_and_by_distractor_type(folder):
    score = np.zeros((3, 10), np.float32)
    score[0, 0] = 1  # right
    score[1, [0, 5]] = 1, 2  # a relation swap above the truth
    score[2, [0, 9]] = 1, 3  # an object swap above the truth
    task = scar(folder)
    found = summarise([task.score(question(TYPES, row, "AAB"[row]), score[row]) for row in range(3)], ["hit@1"])
    assert found.questions == 3 and found.metrics["hit@1"] == pytest.approx(1 / 3)
    assert found.datasets["A"].questions == 2 and found.datasets["A"].metrics == {"hit@1": 0.5}
    assert found.datasets["B"].metrics == {"hit@1": 0}
    assert found.types["global_context"].metrics == {"hit@1": 1.0, "chosen": 0.0}
    assert found.types["object_swap"].metrics == pytest.approx({"hit@1": 2 / 3, "chosen": 1 / 3})
    assert found.types["background_relation"].metrics == pytest.approx({"hit@1": 2 / 3, "chosen": 1 / 3})


def test_the_answer_need_not_stand_first(folder):
    score = np.zeros(10, np.float32)
    score[4] = 1
    assert scar(folder).score(question(["x"] * 4 + ["gt"] + ["x"] * 5), score).metrics == {"hit@1": 1.0}


def test_results_are_printed_plotted_and_written(folder, tmp_path):
    from rich.console import Console

    console = Console(record=True, width=140)
    task = scar(folder)
    found = evaluate(task, Oracle(task))
    print_table(found, Scar.PRESENTATION, console)
    text = console.export_text()
    assert "true prompt" in text and "100.0" in text and "vs object" in text
    plot_result(found, Scar.PRESENTATION, tmp_path / "plot.png")
    assert load_image(tmp_path / "plot.png", "plot").shape[1] == 1200
    assert from_dict(EvalResult, json.loads(json.dumps(to_dict(found)))) == found
    written = report(found)["prompt"]
    assert list(written) == ["questions", "hit@1", "datasets", "types"] and written["hit@1"] == 1
    assert set(written["types"]["object_swap"]) == {"questions", "hit@1", "chosen"}


def test_a_way_of_asking_that_no_question_has_is_told_as_absent(folder, tmp_path):
    from rich.console import Console

    found = EvalResult("scar", "hit@1", {"wrong": summarise([], ["hit@1"])})
    assert found.score is None and found.scalars() == {} and "wrong -" in found.summary()
    print_table(found, Scar.PRESENTATION, Console(record=True, width=140))
    plot_result(found, Scar.PRESENTATION, tmp_path / "plot.png")
