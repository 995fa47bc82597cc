"""Two processes of four devices each against one of eight: the same run, saved by one and continued by the other, and
two that the launcher starts again after a kill."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import kill_and_resume
import numpy as np
import pytest
import recorded_train
import survival_run

from launch import local
from virtue_jax.config import from_dict
from virtue_jax.data.sources.open_data import open_sources
from virtue_jax.exit_status import SAVED
from virtue_jax.model_directory import parameter_shapes, save_model
from virtue_jax.train.step.config import TrainConfig
from virtue_jax.train.weights import starting_model

HERE = Path(__file__).parent
ROOT, END_TO_END = HERE.parents[1], HERE.parent / "end_to_end"

pytestmark = pytest.mark.slow

STEPS, STOPPED_AFTER, PATIENCE = 8, 3, 600
# What is compared is the program, not its speed.
IN_A_HURRY = "--xla_backend_optimization_level=0"
LOGGED = [1, 3, 6, STEPS]


def made_model(folder: Path) -> None:
    """A model directory for the survival run: random weights need no program to be compiled."""
    given = survival_run.get_config()
    given.data.sources.scenes.path = str(folder / "scenes")
    config = from_dict(TrainConfig, given.to_dict())
    start = starting_model(config, open_sources(config.data, 0), folder)
    rng = np.random.default_rng(0)
    # Not zero-centred, so that norms' scales are usable.
    shapes = parameter_shapes(start.virtue).items()
    params = {path: rng.normal(0.1, 0.1, shape).astype(np.float32) for path, shape in shapes}
    save_model(folder / "start", start.virtue, params, **start.companions)


def started(
    folder: Path, workdir: Path, processes: int, *options: str, own_options: dict[int, list[str]] | None = None
) -> list[subprocess.Popen]:
    """The survival run on eight devices in all, with the scenes and the model of `folder`. own_options: by process."""
    options = launch_options(folder, workdir, processes, *options)
    out = []
    for number, start in enumerate(local.starts(local.parsed(options), local.free_address())):
        with (workdir / f"said-{number}.txt").open("ab") as said:
            own = start.command + (own_options or {}).get(number, [])
            environment = environment_for(folder) | start.environment
            environment["XLA_FLAGS"] += f" {IN_A_HURRY}"
            out.append(subprocess.Popen(own, cwd=ROOT, env=environment, stdout=said, stderr=said))
    return out


def launched(folder: Path, workdir: Path, *options: str, retries: int) -> subprocess.Popen:
    """The same over two processes by launch/local.py; what all say is in `workdir`/said.txt."""
    command = [sys.executable, str(ROOT / "launch/local.py"), f"--retries={retries}"]
    command += launch_options(folder, workdir, 2, *options)
    environment = environment_for(folder) | {"XLA_FLAGS": IN_A_HURRY}
    with (workdir / "said.txt").open("ab") as said:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)


def launch_options(folder: Path, workdir: Path, processes: int, *options: str) -> list[str]:
    workdir.mkdir(parents=True, exist_ok=True)
    program = shlex.join([sys.executable, str(END_TO_END / "recorded_train.py")])
    given = [f"--processes={processes}", f"--devices={8 // processes}", "--program", program, "--"]
    given += ["--config", f"{END_TO_END / 'survival_run.py'}:{folder / 'start'}", "--workdir", str(workdir)]
    return [*given, f"--config.data.sources.scenes.path={folder / 'scenes'}", f"--config.steps={STEPS}", *options]


def environment_for(folder: Path) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(END_TO_END)]),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def ended(processes: list[subprocess.Popen], workdir: Path, status: int) -> None:
    try:
        found = [process.wait(PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    said = "\n".join(file.read_text()[-2500:] for file in sorted(workdir.glob("said*.txt")))
    assert found == [status] * len(processes), said


def stopped(folder: Path, workdir: Path) -> None:
    """One process, told to stop after a few steps."""
    (running,) = started(folder, workdir, 1)
    after(STOPPED_AFTER, workdir, running)
    running.send_signal(signal.SIGTERM)
    ended([running], workdir, SAVED)


def two_stopped(folder: Path, workdir: Path) -> None:
    """Two processes of which one is told to stop: all end, and so does a launcher that has no retries."""
    launcher = launched(folder, workdir, retries=0)
    after(STOPPED_AFTER, workdir, launcher)
    os.kill(launched_process(workdir, 1), signal.SIGTERM)
    ended([launcher], workdir, SAVED)


def killed_and_started_again(folder: Path, workdir: Path, *options: str) -> None:
    """Two processes of which one is killed: the launcher ends the other and starts both again, to the end."""
    begin = kill_and_resume.last_step(workdir)
    launcher = launched(folder, workdir, *options, retries=1)
    after(begin + 1, workdir, launcher)
    os.kill(launched_process(workdir, 1), signal.SIGKILL)
    ended([launcher], workdir, 0)


def after(step: int, workdir: Path, running: subprocess.Popen) -> None:
    end = time.monotonic() + PATIENCE
    while kill_and_resume.last_step(workdir) < step and time.monotonic() < end and running.poll() is None:
        time.sleep(0.01)


def launched_process(workdir: Path, number: int) -> int:
    """The last that the launcher started."""
    return int(re.findall(rf"process {number} is (\d+)", (workdir / "said.txt").read_text())[-1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """{"processes before the stop, processes after it": workdir}."""
    folder = tmp_path_factory.mktemp("multihost")
    kill_and_resume.make_scenes(folder / "scenes")
    made_model(folder)
    stopped(folder, folder / "1 stopped")
    two_stopped(folder, folder / "2 stopped")
    for before, after_it in ((1, 1), (1, 2), (2, 1)):
        shutil.copytree(folder / f"{before} stopped", folder / f"{before}, {after_it}")
    for name in ("1, 1", "2, 1"):
        ended(started(folder, folder / name, 1), folder / name, 0)
    # Over two processes the frozen weights are split as well: other shardings than those that were saved.
    killed_and_started_again(folder, folder / "1, 2", "--config.mesh={'fsdp': 8}")
    names = ("1 stopped", "2 stopped", "1, 1", "1, 2", "2, 1")
    return {name: folder / name for name in names}


def saved_steps(workdir: Path) -> list[int]:
    return sorted(int(path.name.split("_")[1]) for path in (workdir / "checkpoints").glob("step_*"))


def data_of(workdir: Path) -> dict[int, list]:
    """{step: sorted origins of all its rows}, whichever process had them."""
    parts = [recorded_train.consumed(workdir, number) for number in range(len(list(workdir.glob("consumed-*"))))]
    return {
        step: sorted(name for part in parts if step in part for rows in part[step] for row in rows for name in row)
        for step in range(1, 1 + max(max(part) for part in parts))
    }


def test_a_signal_to_one_process_saves_and_ends_all(runs):
    for name in ("1 stopped", "2 stopped"):
        step = kill_and_resume.last_step(runs[name])
        assert saved_steps(runs[name])[-1] == step >= STOPPED_AFTER
        assert not (runs[name] / "model").exists()


@pytest.mark.parametrize("name", ["2 stopped", "1, 2", "2, 1"])
def test_losses_do_not_depend_on_the_number_of_processes(runs, name):
    one, other = kill_and_resume.losses(runs["1, 1"]), kill_and_resume.losses(runs[name])
    steps = sorted(other)
    assert steps == [step for step in LOGGED if step <= (STEPS if "," in name else steps[-1])]
    np.testing.assert_allclose([other[step] for step in steps], [one[step] for step in steps], rtol=1e-5)


@pytest.mark.parametrize("name", ["2 stopped", "1, 2", "2, 1"])
def test_the_data_does_not_depend_on_the_number_of_processes(runs, name):
    one, other = data_of(runs["1, 1"]), data_of(runs[name])
    assert all(one[step] == other[step] for step in other)


def test_the_model_of_several_processes_is_whole(runs):
    one = kill_and_resume.parameters_of(runs["1, 1"] / "model")
    for name in ("1, 2", "2, 1"):
        other = kill_and_resume.parameters_of(runs[name] / "model")
        assert one.keys() == other.keys()
        for path, x in one.items():
            np.testing.assert_allclose(other[path], x, atol=1e-4, err_msg=path)


def test_the_launcher_starts_a_run_again_and_says_whose_line_is_whose(runs):
    stopped, said = ((runs[name] / "said.txt").read_text() for name in ("2 stopped", "1, 2"))
    ends = r"^\[launch\] ended with \[(.*), (.*)\]: (\w+)$"
    assert re.findall(ends, stopped, re.MULTILINE) == [("75", "75", "again")]
    killed, finished = re.findall(ends, said, re.MULTILINE)
    # Who is left alone after a kill is aborted by the runtime, killed by the launcher, or notices.
    assert killed[0] in ("-6", "-9", "69") and killed[1:] == ("-9", "again")
    assert finished == ("0", "0", "finished")
    assert re.search(r"^\[0\] .*model: ", said, re.MULTILINE)
    assert all(re.match(r"\[(launch|0|1)\] ", line) for line in said.splitlines())


def test_only_the_leader_prints_and_writes_metrics(runs):
    said = [line for line in (runs["1, 2"] / "said.txt").read_text().splitlines() if line.startswith("[1]")]
    assert said and not any("step " in line for line in said)
    records = (runs["1, 2"] / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in records] == LOGGED
