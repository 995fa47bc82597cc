"""launch/slurm.sh: what is submitted, and what the job does when its processes end."""

import shlex

import pytest

NODES = ("--nodes", "1", "--gpus", "2")
TRAIN = ("--", "--config", "a file.py", "--workdir", "/scratch/it's", "--config.x=$(touch hacked)")


def test_a_dry_run_shows_the_command_and_the_script(cloud):
    options = ("--nodes", "4", "--gpus", "8", "--time", "1-0", "--sbatch=--partition=the gpus")
    shown = cloud.run("slurm.sh", *options, "--dry-run", *TRAIN).stdout
    command, script = shown.split("\n", 1)
    words = shlex.split(command)
    assert words[words.index("sbatch") - 1].startswith("VIRTUE_RETRIES=")
    for word in ("--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", "--requeue", "--signal=B:USR1@300"):
        assert word in words
    assert {"--time=1-0", "--partition=the gpus"} <= set(words)
    assert words[-len(TRAIN) :] == [words[-len(TRAIN)], *TRAIN[1:]] and words[-len(TRAIN)].endswith("/slurm.sbatch")
    assert script.startswith("#!/usr/bin/env bash") and "srun " in script
    assert not cloud.calls("sbatch")


def test_one_process_per_node_is_given_all_its_gpus(cloud):
    cloud.plan(workers=1, ends=[[0]])
    cloud.run("slurm.sh", "--nodes", "1", "--gpus", "4", "--per-node", *TRAIN)
    assert "--ntasks-per-node=1" in cloud.calls("sbatch")[0]["arguments"]
    (train,) = [call for call in cloud.calls("virtue") if call["arguments"][0] == "train"]
    assert train["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3"
    assert train["arguments"] == ["train", "--distributed", *TRAIN[1:]]
    assert train["XLA_FLAGS"].strip() == "--flag_of_gpu=true"
    assert not list(cloud.folder.rglob("hacked"))


@pytest.mark.parametrize(
    ("ends", "restarts", "status", "requeued"),
    [
        ([0, 0], 0, 0, False),
        ([2, 137], 0, 2, False),
        ([70, 69], 0, 75, True),
        ([137, 69], 9, 75, True),
        ([137, 69], 10, 75, False),
        ([75, 75], 0, 75, False),  # scancel, or a preemption, after which SLURM itself puts it back
    ],
)
def test_the_job_is_put_back_into_the_queue_after_hangs_and_kills_only(cloud, ends, restarts, status, requeued):
    cloud.plan(workers=2, ends=[ends], restarts=restarts)
    cloud.run("slurm.sh", *NODES, *TRAIN, status=status)
    assert bool(cloud.calls("scontrol", "requeue")) == requeued
    assert not list(cloud.folder.glob(".virtue-*"))


def test_before_its_time_is_up_it_is_told_to_save_and_put_back(cloud):
    # The first task warns the job, as SLURM would; scancel is what then tells the tasks.
    cloud.plan(workers=2, ends=[["warns", "hangs"]])
    said = cloud.run("slurm.sh", *NODES, *TRAIN, status=75).stderr
    assert "ended with 75 75: again" in said
    assert cloud.calls("scancel", "--signal=TERM") and cloud.calls("scontrol", "requeue")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (TRAIN, "--nodes and --gpus are needed"),
        ((*NODES, "--nodes", "x", *TRAIN), "--nodes x: expected a whole number from 1"),
        ((*NODES, "--partition", "gpu", *TRAIN), "--partition: no such option"),
        ((*NODES, "--", "--config=a.py", "--workdir", "gs://bucket/run"), "expected a folder on a file system"),
        ((*NODES, "--", "--config=a.py"), "no --workdir"),
    ],
)
def test_bad_input_is_refused_in_one_line(cloud, arguments, told):
    assert told in cloud.refused("slurm.sh", *arguments)
