"""A run that evaluates itself: at the right steps, once each whatever interrupts it, and keeps its best model."""

import json
import os
import shutil
import signal
from pathlib import Path

import jax
import pytest
import tiny_run
from rich.console import Console

from virtue_jax.config import Compat, from_dict
from virtue_jax.data.example import InvalidExample
from virtue_jax.embedding.embedder import Embedder
from virtue_jax.eval.config import EvalConfig
from virtue_jax.eval.evaluate import evaluate
from virtue_jax.eval.open_task import open_task
from virtue_jax.model_directory import read_head
from virtue_jax.train import evaluations
from virtue_jax.train.evaluations import EvalRecord, Evaluations
from virtue_jax.train.loop import train
from virtue_jax.train.step.config import TrainConfig
from virtue_jax.train.survival.interruption import Interrupted

pytestmark = pytest.mark.slow

STEPS, EVERY, AT = 7, 3, [3, 6, 7]


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Every start of the run compiles the same programs."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def run_of(scenes: Path, questions: Path | None = None, **changes) -> TrainConfig:
    given = tiny_run.get_config()
    given.data.sources.scenes.path = str(scenes)
    given.steps, given.checkpoint_every, given.keep_best = STEPS, 2, "scar"
    given.evals = {"scar": {"path": str(questions or scenes), "modes": ("prompt", "none"), "every": EVERY}}
    for name, value in changes.items():
        given[name] = value
    return from_dict(TrainConfig, given.to_dict())


def records(workdir: Path) -> list[EvalRecord]:
    lines = (workdir / "evals.jsonl").read_text().splitlines()
    return [from_dict(EvalRecord, json.loads(line)) for line in lines]


def metrics(workdir: Path) -> dict[int, dict]:
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len({record["step"] for record in found}) == len(found)
    return {record["step"]: record for record in found}


@pytest.fixture(scope="module")
def unbroken(scenes, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("unbroken")
    said = Console(record=True, width=200, force_terminal=False)
    train(run_of(scenes), workdir, said)
    (workdir / "said.txt").write_text(said.export_text())
    return workdir


def test_scores_appear_at_the_right_steps_everywhere(unbroken):
    assert [record.step for record in records(unbroken)] == AT
    for record in records(unbroken):
        assert list(record.result.results) == ["prompt", "none"] and record.result.results["prompt"].questions > 5
        line = metrics(unbroken)[record.step]
        assert line["scar/prompt/hit@1"] == record.score and line["loss"] and line["scar/seconds"] > 0
        assert (
            f"step {record.step}: scar: hit@1 in percent: prompt {100 * record.score:.1f}"
            in (unbroken / "said.txt").read_text()
        )
    assert [step for step, record in metrics(unbroken).items() if "scar/prompt/hit@1" in record] == AT
    (start,) = json.loads((unbroken / "goodput.json").read_text())["starts"]
    assert start["seconds"]["evaluation"] > 0


def test_the_best_model_is_kept_and_scores_what_its_run_said(unbroken, scenes):
    best = max(records(unbroken), key=lambda record: (record.score, -record.step))
    about = read_head(unbroken / "best")["provenance"]
    assert about == {"step": best.step, "evaluation": "scar", "metric": "hit@1", "score": best.score}
    task = open_task(EvalConfig(str(scenes), modes=("prompt", "none")), Compat())
    assert evaluate(task, Embedder.load(unbroken / "best")) == best.result


def test_evaluations_do_not_change_the_training(unbroken, scenes, tmp_path):
    train(run_of(scenes, evals={}, keep_best=""), tmp_path, Console(quiet=True))
    assert not (tmp_path / "evals.jsonl").exists() and not (tmp_path / "best").exists()
    one, other = metrics(tmp_path), metrics(unbroken)
    assert {step: record["loss"] for step, record in one.items()} == {s: r["loss"] for s, r in other.items()}


def signalled(monkeypatch, at: int):
    """SIGTERM within the evaluation after a step."""
    real = evaluations.evaluate

    def evaluate_(*args, progress, **settings):
        if evaluating == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, progress=progress, **settings)

    def run(self, step, trainable):
        nonlocal evaluating
        evaluating = step
        return whole(self, step, trainable)

    evaluating, whole = 0, Evaluations.run
    monkeypatch.setattr(evaluations, "evaluate", evaluate_)
    monkeypatch.setattr(Evaluations, "run", run)
    return Interrupted


def failing_record(monkeypatch, at: int):
    """The disk is full between the best model and the record of a step."""
    real = Evaluations._record

    def record(self, found):
        if found.step == at:
            raise OSError("the disk is full")
        real(self, found)

    monkeypatch.setattr(Evaluations, "_record", record)
    return OSError


@pytest.mark.parametrize(("interrupt", "at"), [(signalled, 3), (signalled, STEPS), (failing_record, 6)])
def test_an_interrupted_evaluation_is_made_up_for_and_the_run_ends_as_if_unbroken(
    unbroken, scenes, tmp_path, monkeypatch, interrupt, at
):
    with monkeypatch.context() as patch, pytest.raises(interrupt(patch, at)):
        train(run_of(scenes), tmp_path, Console(quiet=True))
    assert [record.step for record in records(tmp_path)] == [step for step in AT if step < at] if at > 3 else True
    train(run_of(scenes), tmp_path, Console(quiet=True))
    assert records(tmp_path) == records(unbroken)
    assert read_head(tmp_path / "best") == read_head(unbroken / "best")
    one, other = metrics(tmp_path), metrics(unbroken)
    assert {step: record["loss"] for step, record in one.items()} == {s: r["loss"] for s, r in other.items()}


def test_unreadable_questions_are_set_aside_within_the_limit(scenes, tmp_path):
    folder = shutil.copytree(scenes, tmp_path / "scenes")
    source = open_task(EvalConfig(str(folder)), Compat())
    spoilt = source.question(0).query.images[0]
    Path(spoilt).write_bytes(Path(spoilt).read_bytes()[:-200])  # whose header is whole
    bad = [row for row in range(len(source)) if source.question(row).query.images[0] == spoilt]
    settings = {"path": str(folder), "modes": ("prompt",), "bad_rows": 1.0}
    train(run_of(scenes, steps=3, keep_best="", evals={"scar": settings}), tmp_path / "work", Console(quiet=True))
    (record,) = records(tmp_path / "work")
    assert record.step == 3 and record.result.left_out == len(bad)
    assert record.result.results["prompt"].questions == len(source) - len(bad)
    listed = [json.loads(line) for line in (tmp_path / "work/quarantine.jsonl").read_text().splitlines()]
    assert [entry["element"] for entry in listed] == bad and spoilt in listed[0]["error"]


def test_what_cannot_be_evaluated_is_told_before_the_first_step(scenes, tmp_path):
    for settings, message in [
        ({"path": str(scenes / "absent.parquet")}, "absent.parquet"),
        ({"path": str(scenes), "modes": ("blind",)}, r"config.evals.scar: modes \['blind'\]"),
        ({"path": str(scenes), "task": "scart"}, "config.evals.scar: task 'scart' is not one of scar"),
    ]:
        with pytest.raises(ValueError, match=message):
            train(run_of(scenes, evals={"scar": settings}), tmp_path, Console(quiet=True))
    with pytest.raises(ValueError, match=r"config.keep_best: 'other' is not one of config.evals"):
        run_of(scenes, keep_best="other")
    folder = shutil.copytree(scenes, tmp_path / "scenes")
    for image in (folder / "images").rglob("*.png"):
        image.write_bytes(b"no image")
    with pytest.raises(InvalidExample, match=r"of \d+ questions cannot be read, more than config.evals.scar.bad_rows"):
        train(run_of(scenes, folder), tmp_path / "work", Console(quiet=True))
    assert not (tmp_path / "work/checkpoints").exists()
