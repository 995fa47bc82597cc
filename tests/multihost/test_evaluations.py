"""Two processes evaluate their shares while they train, over weights that the mesh splits, and find what one finds."""

import json
from pathlib import Path

import kill_and_resume
import pytest
from test_processes import ended, made_model, started

from virtue_jax.config import from_dict
from virtue_jax.data.scenes import write_scenes
from virtue_jax.model_directory import read_head
from virtue_jax.train.evaluations import EvalRecord

pytestmark = pytest.mark.slow

STEPS = 2


def records(workdir: Path) -> list[EvalRecord]:
    lines = (workdir / "evals.jsonl").read_text().splitlines()
    return [from_dict(EvalRecord, json.loads(line)) for line in lines]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[int, Path]:
    """{processes: workdir}."""
    folder = tmp_path_factory.mktemp("evaluating")
    kill_and_resume.make_scenes(folder / "scenes")
    write_scenes(folder / "questions", train=0, eval=4, seed=6, width=(64, 64), height=(64, 64), objects=(2, 3))
    made_model(folder)
    evals = {"scar": {"path": str(folder / "questions"), "modes": ("prompt", "none"), "limit": 7, "every": 1}}
    options = [
        f"--config.evals={evals}",
        "--config.keep_best=scar",
        f"--config.steps={STEPS}",
        "--config.optimizer.warmup_steps=1",
    ]
    for processes, mesh in ((1, {"fsdp": 1}), (2, {"fsdp": 8})):
        workdir = folder / str(processes)
        ended(started(folder, workdir, processes, *options, f"--config.mesh={mesh}"), workdir, 0)
    return {processes: folder / str(processes) for processes in (1, 2)}


def test_two_processes_find_what_one_finds(runs):
    one, two = (records(runs[processes]) for processes in (1, 2))
    assert [record.step for record in one] == list(range(1, STEPS + 1))
    assert one[0].result.results["prompt"].questions == 7
    assert [record.result for record in two] == [record.result for record in one]


def test_only_the_leader_writes_and_keeps_the_best(runs):
    for workdir in runs.values():
        best = max(records(workdir), key=lambda record: (record.score, -record.step))
        assert read_head(workdir / "best")["provenance"]["step"] == best.step
        said = "".join(file.read_text() for file in sorted(workdir.glob("said-*.txt")))
        assert said.count("step 1: scar: hit@1 in percent: prompt") == 1
