"""What bad rows do to an evaluation, and what every task gets from the room."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from virtue_jax.config import Compat
from virtue_jax.data.example import Example, InvalidExample
from virtue_jax.eval import answers, evaluate
from virtue_jax.eval.answers import AnotherStopped, BadRow
from virtue_jax.eval.config import EvalConfig
from virtue_jax.eval.open_task import TASKS
from virtue_jax.eval.question import Question, key_of
from virtue_jax.eval.task import Task


class Letters(Task):
    """Row i asks for the letter i of the alphabet among all of them; `BAD` rows cannot be read."""

    POOL = tuple(Example(letter) for letter in "abcdefgh")
    MODES = ("lower", "upper")

    def __init__(self, bad=(), limit=0):
        super().__init__(EvalConfig("unused", limit=limit), Compat.paper())
        self.bad = bad

    def __len__(self):
        return len(self.POOL)

    def origin(self, row):
        return f"letters:{row}"

    def question(self, row):
        if row in self.bad:
            raise KeyError("no such letter")
        wanted = self.POOL[row]
        return Question(Example(wanted.text, origin=self.origin(row)), self.POOL, frozenset([key_of(wanted)]), row=row)

    def query(self, question, mode):
        if mode == "lower":
            return question.query
        return Example(question.query.text.upper(), origin=question.origin) if question.row % 2 else None


class Alphabet:
    """Embeds a letter as its own basis vector. spoilt: a text that only encoding finds unreadable."""

    def __init__(self, spoilt=None):
        self.spoilt, self.seen = spoilt, []
        self.encoder = self

    def encode(self, example):
        if example.text == self.spoilt:
            raise InvalidExample(f"{example.origin}: no letter")
        return example

    def embed(self, examples, progress=None):
        examples = list(map(self.encode, examples))
        self.seen += [example.text for example in examples]
        out = np.zeros((len(examples), 26), np.float32)
        out[np.arange(len(examples)), [ord(example.text.lower()) - ord("a") for example in examples]] = 1
        if progress is not None:
            progress(len(examples))
        return out


def test_a_pool_that_questions_share_is_embedded_once_and_metrics_are_means():
    embedder = Alphabet()
    found = evaluate.evaluate(Letters(), embedder)
    assert sorted(embedder.seen) == sorted("abcdefgh" * 2 + "BDFH")
    assert found.results["lower"].questions == 8 and found.results["upper"].questions == 4
    assert found.results["lower"].metrics["mrr@10"] == found.score == 1
    assert found.results["lower"].metrics["precision@10"] == pytest.approx(0.1)


def test_the_first_bad_row_ends_an_evaluation_or_bad_ones_are_left_out():
    with pytest.raises(InvalidExample, match=r"letters:2: KeyError: .*no such letter"):
        evaluate.evaluate(Letters(bad=(5, 2)), Alphabet())
    met = []
    found = evaluate.evaluate(Letters(bad=(5, 2)), Alphabet(), bad=met.extend)
    assert [entry.row for entry in met] == [2, 5] and found.left_out == 2
    assert found.results["lower"].questions == 6 and found.score == 1


def test_a_query_that_only_decoding_finds_bad_leaves_its_question_out_of_every_mode():
    met = []
    found = evaluate.evaluate(Letters(), Alphabet(spoilt="D"), bad=met.extend)
    assert met == [BadRow(3, "letters:3", "letters:3: no letter")]
    assert found.results["lower"].questions == 7 and found.results["upper"].questions == 3


def test_a_candidate_that_only_decoding_finds_bad_is_every_question_s_fault_that_has_it():
    found = evaluate.evaluate(Letters(limit=3), Alphabet(spoilt="h"), bad=lambda bad: None)
    assert found.left_out == 3 and found.results["lower"].metrics["hit@1"] is None


def test_what_is_no_example_s_fault_ends_the_evaluation():
    class Broken(Alphabet):
        def embed(self, examples, progress=None):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate.evaluate(Letters(), Broken(), bad=lambda bad: None)


def test_rows_are_checked_by_headers_before_anything_is_embedded(monkeypatch):
    def check(example, encoder):
        if example.text == "c":
            raise ValueError("what no reader foresaw")

    monkeypatch.setattr(evaluate, "check_example", check)
    bad = evaluate.check_rows(Letters(bad=(1,), limit=2), None)
    assert [entry.row for entry in bad] == [0, 1]  # every row of the pool has c among its candidates
    assert "ValueError: what no reader foresaw" in bad[0].error and "KeyError" in bad[1].error


@pytest.fixture
def two(monkeypatch):
    """`two(run)`: what each of two processes gets of `run()`; they are run again until all that they say is known."""

    def run_both(run):
        said: list[dict[int, bytes]] = []

        class Waits(BaseException):
            pass

        def gather(turn, process, data):
            number = next(turn)
            if number == len(said):
                said.append({})
            said[number][process] = data
            if len(said[number]) < 2:
                raise Waits
            return [said[number][0], said[number][1]]

        ended: dict[int, object] = {}
        for _ in range(50):
            for process in (0, 1):
                for room in (answers, evaluate):
                    monkeypatch.setattr(room, "process_count", lambda: 2)
                monkeypatch.setattr(answers, "process_number", lambda process=process: process)
                turn = iter(range(100))
                monkeypatch.setattr(answers, "gather_bytes", functools.partial(gather, turn, process))
                try:
                    ended[process] = run(process)
                except Waits:
                    continue
                except BaseException as error:
                    ended[process] = error
            if len(ended) == 2:
                return ended
        raise AssertionError("they wait for each other")

    return run_both


def test_two_processes_ask_their_shares_and_find_the_same_as_one(two, monkeypatch):
    alone = evaluate.evaluate(Letters(bad=(6,)), Alphabet(), bad=lambda bad: None)
    monkeypatch.setattr(evaluate, "BLOCK", 3)
    embedders = {}

    def run(process):
        embedders[process] = Alphabet()
        return evaluate.evaluate(Letters(bad=(6,)), embedders[process], bad=lambda bad: None)

    found = two(run)
    assert found[0] == found[1] == alone
    assert {text for text in embedders[0].seen if text.isupper()} == set("BD")


def test_where_one_of_two_processes_fails_or_is_told_to_stop_both_end(two):
    class Stop(BaseException):
        pass

    def stopped(process):
        def progress(done):
            if process:
                raise Stop

        return evaluate.evaluate(Letters(), Alphabet(), progress=progress)

    found = two(stopped)
    assert isinstance(found[0], AnotherStopped) and isinstance(found[1], Stop)
    failed = two(lambda process: evaluate.evaluate(Letters(bad=(0,) if process else ()), None))
    assert all(isinstance(error, Exception) for error in failed.values())


def test_every_file_of_tasks_has_a_row_and_says_how_it_is_shown():
    import importlib

    import virtue_jax.eval.tasks as tasks

    files = {path.stem for folder in tasks.__path__ for path in Path(folder).glob("*.py")}
    assert files == {module.rsplit(".", 1)[1] for module, _ in TASKS.values()}
    for module, name in TASKS.values():
        task = getattr(importlib.import_module(module), name)
        assert issubclass(task, Task) and task.PRESENTATION.title and json.dumps(task.MODES)


def test_images_of_the_same_bytes_have_one_key_and_prompts_tell_apart():
    from virtue_jax.data.example import VisualPrompt

    one, same = (Example("t", (bytes([1, 2]),)) for _ in range(2))
    mask = np.eye(3, dtype=bool)
    pointed = [Example("t", ("a.png",), VisualPrompt(mask=m)) for m in (mask, ~mask)]
    assert key_of(one) == key_of(same) and len({key_of(one), *map(key_of, pointed)}) == 3
