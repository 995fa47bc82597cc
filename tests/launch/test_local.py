"""launch/local.py: who is started with what, and what happens when one of them ends (a whole run: tests/multihost)."""

import ast
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import local

SCRIPT = Path(local.__file__)
# In place of `virtue train`: says what it was given, and ends as file START-PROCESS says; "waits" = when it is told.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
folder, number = Path(sys.argv[2]), sys.argv[-1].partition("=")[2]
starts = folder / f"starts-{number}"
start = len(starts.read_text()) if starts.exists() else 0
starts.write_text("." * (start + 1))
for number_of_signal in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number_of_signal, lambda *_: sys.exit(75))
print("hears", os.environ["XLA_FLAGS"], *sys.argv[1:], flush=True)
end = (folder / f"{start}-{number}").read_text()
if end == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
while end in ("waits", "deaf"):
    if end == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(0.02)
sys.exit(int(end))
"""


@pytest.fixture
def launcher(tmp_path):
    """`launcher(ends, *options)`: the launcher's process on ends[start][process]."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def start(ends: list[list], *options: str) -> subprocess.Popen:
        for number, statuses in enumerate(ends):
            for process, status in enumerate(statuses):
                (tmp_path / f"{number}-{process}").write_text(str(status))
        program = shlex.join([sys.executable, "-SE", str(tmp_path / "program.py")])
        command = [sys.executable, str(SCRIPT), f"--processes={len(ends[0])}", "--program", program, *options]
        command += ["--", "--workdir", str(tmp_path)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return start


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        ([[0, 0]], 0),
        ([[75, 75], [0, 0]], 0),
        ([["killed", "waits"], [0, 0]], 0),
        ([[70, 69], ["killed", 69], [0, 0]], 0),
        ([[2, 137], [0, 0]], 2),
        ([[137, "killed"], [1, "waits"]], 1),
        ([[70, 69]] * 3, 70),
        ([[75, 75]] * 3, 75),
    ],
)
def test_a_run_is_started_again_until_it_is_finished_or_cannot_go_on(launcher, ends, status):
    process = launcher(ends, "--retries=2")
    said = process.communicate(timeout=120)[0]
    assert process.returncode == status, said
    assert said.count("[0] hears") == (ends.index([0, 0]) + 1 if status == 0 else said.count("ended with"))
    assert ("retries are used up" in said) == (len(ends) == 3 and status != 0)


def test_a_line_says_whose_it_is_and_what_the_process_was_given(launcher):
    said = launcher([[0, 0]], "--devices=3").communicate(timeout=120)[0]
    for number in range(2):
        (line,) = [line for line in said.splitlines() if line.startswith(f"[{number}] hears ")]
        assert "--xla_force_host_platform_device_count=3" in line
        assert line.endswith(f"--processes=2 --process={number}") and "--coordinator localhost:" in line


@pytest.mark.slow
def test_who_does_not_follow_is_killed(launcher):
    begin = time.monotonic()
    process = launcher([[2, "deaf"]], "--grace=1")
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 2 and "ended with [2, -9]" in said
    assert time.monotonic() - begin < 4 * local.LAST_WORDS + 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_stops_all_and_is_not_a_reason_to_start_again(launcher, number):
    process = launcher([["waits", "waits"]])
    said = ""
    while said.count("hears") < 2:
        said += process.stdout.readline()
    process.send_signal(number)
    said += process.communicate(timeout=120)[0]
    assert f"{signal.Signals(number).name}: passed on to all processes" in said
    assert said.count("hears") == 2 and process.returncode == 75


def test_a_dry_run_shows_the_commands_and_starts_nothing(launcher, tmp_path):
    said = launcher([[0, 0]], "--dry-run", "--gpus=0,1,2,3").communicate(timeout=120)[0]
    first, second = (shlex.split(line) for line in said.splitlines())
    assert first[:2] == ["env", "CUDA_VISIBLE_DEVICES=0,1"] and second[1] == "CUDA_VISIBLE_DEVICES=2,3"
    assert first[2].startswith("XLA_FLAGS=--xla_gpu_") and first[-1] == "--process=0"
    assert not list(tmp_path.glob("starts-*"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--processes=0", "--", "--workdir=x"], "at least 1"),
        (["--gpus=0,1,2", "--", "--workdir=x"], "3 GPUs cannot be shared out evenly over 2 processes"),
        (["--", "--config=x"], "no --workdir"),
        (["--process=3", "--", "--workdir=x"], "--process=3"),
    ],
)
def test_bad_input_is_refused(arguments, told, capsys):
    with pytest.raises(SystemExit) as ended:
        local.main(arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_a_program_that_is_not_there_is_one_line(launcher, tmp_path, capsys):
    assert local.main(["--program", str(tmp_path / "nothing"), "--", f"--workdir={tmp_path}"]) == 2
    assert "cannot be started" in capsys.readouterr().out


def test_the_launcher_needs_the_standard_library_only():
    tree = ast.parse(SCRIPT.read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names - {"virtue_jax.exit_status"}} <= set(sys.stdlib_module_names)
    bare = [sys.executable, "-I", "-S", SCRIPT, "--help"]  # without any package
    assert subprocess.run(bare, capture_output=True).returncode == 0
    assert os.access(SCRIPT, os.X_OK)
