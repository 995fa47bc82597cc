"""What holds for every script in launch/."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch import local
from virtue_jax import exit_status

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(str(path.relative_to(LAUNCH)) for end in ("*.sh", "*.sbatch") for path in LAUNCH.rglob(end))
SOURCED = ("launcher.sh", "tpu_kinds.sh")
# Which of these a user starts.
COMMANDS = ("tpu_pod.sh", "slurm.sh", "gke/run.sh", "gke/xpk.sh")


def in_bash(function: str, *arguments: str) -> str:
    """What a function of launcher.sh says."""
    command = ["bash", "-c", 'source "$1" && "${@:2}"', "test", str(LAUNCH / "launcher.sh"), function, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
    tool = Path(sys.executable).with_name("shellcheck")
    found = subprocess.run([tool, "-x", LAUNCH / script], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_short(script):
    assert len((LAUNCH / script).read_text().splitlines()) <= 300


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_run_can_be_run_and_what_is_sourced_cannot(script):
    is_run = script.endswith(".sh") and script not in SOURCED
    assert os.access(LAUNCH / script, os.X_OK) == is_run
    assert (LAUNCH / script).read_text().startswith("#!") == (script not in SOURCED)


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script not in SOURCED])
def test_a_script_ends_where_something_in_it_fails(script):
    assert "\nset -euo pipefail\n" in (LAUNCH / script).read_text()


@pytest.mark.parametrize("script", COMMANDS)
def test_help_says_what_a_script_takes(cloud, script):
    said = cloud.run(script, "--help").stdout
    assert said.startswith("bash ") and "set -euo" not in said
    labels = re.findall(r"^ +(--[a-z|* -]+=?\*?)\) ", (LAUNCH / script).read_text(), re.MULTILINE)
    options = {option.rstrip("=*") for label in labels for option in label.split(" | ")}
    assert options - {"--", ""} and all(option in said for option in options)


def test_the_shell_reads_the_exit_statuses_of_the_package():
    for name, number in exit_status.statuses().items():
        assert in_bash("exit_status", name) == f"{number}\n"
    with pytest.raises(subprocess.CalledProcessError):
        in_bash("exit_status", "UNKNOWN")
    printed = subprocess.run([sys.executable, "-m", "virtue_jax.exit_status"], capture_output=True, text=True).stdout
    assert dict(line.split("=") for line in printed.split()) == {k: str(v) for k, v in exit_status.statuses().items()}


@pytest.mark.parametrize("number", [0, 1, 2, 69, 70, 75, 126, 127, 134, 137, 143])
@pytest.mark.parametrize("other", [0, 2, 69, 75, 137])
def test_the_shell_and_the_local_launcher_judge_alike(number, other):
    shell = [
        "bash",
        "-c",
        'source "$1" && verdict "${@:2}"',
        "test",
        str(LAUNCH / "launcher.sh"),
        str(number),
        str(other),
    ]
    said = subprocess.run(shell, capture_output=True, text=True, check=True).stdout.split()
    # Python names a kill by its signal.
    what, status = local.verdict([128 - n if n > 128 else n for n in (number, other)])
    assert said == ([what, str(status)] if what == "stop" else [what])


def test_words_are_shown_so_that_a_shell_reads_them_back():
    given = ["plain", "two words", "it's", '"', "$(id)", "`id`", "", "a\nb", "*", "~", "é", "--x=1;2"]
    shown = in_bash("shown", *given)
    again = subprocess.run(["bash", "-c", f"printf '%s\\0' {shown}"], capture_output=True, text=True, check=True).stdout
    assert again.split("\0")[:-1] == given


def test_the_flags_of_the_environment_come_after_the_tables(cloud):
    cloud.plan(ends=[[0]])
    cloud.run("train.sh", "v6e", "--workdir=x", HOME="worker0", LIBTPU_INIT_ARGS="--mine=1")
    (train,) = cloud.calls("virtue", "train")
    assert train["LIBTPU_INIT_ARGS"] == "--flag_of_v6e=true --mine=1"


def test_what_a_process_would_run_is_shown(cloud):
    shown = cloud.run("train.sh", "--dry-run", "gpu", "--workdir=a b", XLA_FLAGS="").stdout
    assert shown == "env 'XLA_FLAGS=--flag_of_gpu=true ' virtue train --distributed '--workdir=a b'\n"
    assert not cloud.calls("virtue", "train")


def test_the_quickstart_is_shown(cloud):
    shown = cloud.run("quickstart.sh", "--dry-run", "a folder").stdout.splitlines()
    assert [line.split()[1] for line in shown] == ["scenes"] * 3 + ["train"] * 2 + ["eval"]
    assert "a\\ folder/point" in shown[4] and not cloud.calls("virtue")


def test_a_job_of_kubernetes_is_told_where_its_coordinator_is(cloud):
    cloud.plan(ends=[[0]])
    job = {"JOB_COMPLETION_INDEX": "3", "VIRTUE_COORDINATOR": "first:9876", "VIRTUE_PROCESSES": "4"}
    cloud.run("train.sh", "gpu", "--workdir=x", HOME="worker0", **job)
    (train,) = cloud.calls("virtue", "train")
    wanted = ["train", "--coordinator", "first:9876", "--processes=4", "--process=3", "--workdir=x"]
    assert train["arguments"] == wanted
