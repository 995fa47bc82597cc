"""Two processes of four devices each against one of eight: the same run, saved by one and continued by the other."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import kill_and_resume
import numpy as np
import pytest
import recorded_train
import survival_run

from virtue_jax.checkpoint import parameter_shapes, save_model
from virtue_jax.config import from_dict
from virtue_jax.train.config import TrainConfig
from virtue_jax.train.sources import open_sources
from virtue_jax.train.start import starting_model

HERE = Path(__file__).parent
ROOT, END_TO_END = HERE.parents[1], HERE.parent / "end_to_end"

pytestmark = pytest.mark.slow

STEPS, STOPPED_AFTER, PATIENCE = 8, 3, 600
SAVED = 75
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
    workdir.mkdir(parents=True, exist_ok=True)
    # Compiled in a hurry: what is compared is the program, not its speed.
    flags = f"--xla_force_host_platform_device_count={8 // processes} --xla_backend_optimization_level=0"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(END_TO_END)]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
    }
    command = [sys.executable, str(END_TO_END / "recorded_train.py")]
    command += ["--config", f"{END_TO_END / 'survival_run.py'}:{folder / 'start'}", "--workdir", str(workdir)]
    command += [f"--config.data.sources.scenes.path={folder / 'scenes'}", f"--config.steps={STEPS}", *options]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    out = []
    for number in range(processes):
        joined = ["--coordinator", address, f"--processes={processes}", f"--process={number}"]
        with (workdir / f"said-{number}.txt").open("ab") as said:
            own = command + (joined if processes > 1 else []) + (own_options or {}).get(number, [])
            out.append(subprocess.Popen(own, cwd=ROOT, env=environment, stdout=said, stderr=said))
    return out


def ended(processes: list[subprocess.Popen], workdir: Path, status: int) -> None:
    try:
        found = [process.wait(PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    said = "\n".join(file.read_text()[-2500:] for file in sorted(workdir.glob("said-*.txt")))
    assert found == [status] * len(processes), said


def stopped(folder: Path, workdir: Path, processes: int) -> None:
    """Started, and told to stop after a few steps: one of the processes is, all end."""
    running = started(folder, workdir, processes)
    end = time.monotonic() + PATIENCE
    while kill_and_resume.last_step(workdir) < STOPPED_AFTER and time.monotonic() < end:
        if any(process.poll() is not None for process in running):
            break
        time.sleep(0.01)
    running[-1].send_signal(signal.SIGTERM)
    ended(running, workdir, SAVED)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """{"processes before the stop, processes after it": workdir}."""
    folder = tmp_path_factory.mktemp("multihost")
    kill_and_resume.make_scenes(folder / "scenes")
    made_model(folder)
    for before in (1, 2):
        stopped(folder, folder / f"{before} stopped", before)
    # Over two processes the frozen weights are split as well: other shardings than those that were saved.
    for before, after, mesh in ((1, 1, {}), (1, 2, {"fsdp": 8}), (2, 1, {})):
        workdir = folder / f"{before}, {after}"
        shutil.copytree(folder / f"{before} stopped", workdir)
        ended(started(folder, workdir, after, f"--config.mesh={mesh}"), workdir, 0)
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


def test_only_the_leader_prints_and_writes_metrics(runs):
    for name in ("1, 2",):
        assert "step " not in (runs[name] / "said-1.txt").read_text()
        records = (runs[name] / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in records] == LOGGED
