import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "end_to_end"))

import survival_run

from virtue_jax.config import from_dict
from virtue_jax.eval.config import EvalConfig
from virtue_jax.train.step.config import TrainConfig
from virtue_jax.train.survival.identity import forget_another_run, run_identity


@pytest.fixture
def config() -> TrainConfig:
    return from_dict(TrainConfig, survival_run.get_config().to_dict())


@pytest.fixture
def started(tmp_path, config) -> Path:
    """A folder in which a start made rows and a tokenizer, and ended before a step was saved."""
    forget_another_run(tmp_path, config, 1, print)
    (tmp_path / "rows.json").write_text("{}")
    (tmp_path / "tokenizer").mkdir()
    return tmp_path


def names(folder):
    return {path.name for path in folder.iterdir()} & {"rows.json", "tokenizer"}


def test_the_same_run_keeps_what_it_made_however_it_is_saved_and_told(started, config):
    numerics = dataclasses.replace(config.numerics, remat="layer", attention="xla")
    forget_another_run(started, dataclasses.replace(config, log_every=7, keep=9, numerics=numerics), 1, print)
    assert names(started) == {"rows.json", "tokenizer"}


@pytest.mark.parametrize("change", [{"batch_size": 32}, {"seed": 1}, {"shards": 2}])
def test_another_run_makes_its_own_and_says_so(started, config, change):
    lines = []
    shards = change.pop("shards", 1)
    forget_another_run(started, dataclasses.replace(config, **change), shards, lines.append)
    assert not names(started) and len(lines) == 2 and "rows.json was made for another" in lines[0]


def test_with_checkpoints_nothing_is_removed(started, config):
    (started / "checkpoints" / "step_4").mkdir(parents=True)
    forget_another_run(started, dataclasses.replace(config, seed=1), 1, print)
    assert names(started) == {"rows.json", "tokenizer"}


def test_evaluations_make_no_other_run_nor_do_checkpoints_from_before_there_were_any(config):
    evaluated = dataclasses.replace(config, evals={"scar": EvalConfig("questions")}, keep_best="scar")
    assert run_identity(evaluated) == run_identity(config)
    assert not {"evals", "keep_best"} & set(run_identity(config))
