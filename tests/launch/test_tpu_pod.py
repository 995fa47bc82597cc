"""launch/tpu_pod.sh: what it would do, and what it does when the cloud behaves in its several ways."""

import shlex

import pytest

POD = ("--name", "pod", "--zone", "us-west4-a", "--tpu", "v5e:4x4", "--poll", "0")
TRAIN = ("--", "--config", "a file.py", "--workdir", "/mnt/virtue/it's", "--config.x=$(touch hacked); `id`")
WORKERS = 2


def remote(line: str) -> list[str]:
    """What a shown `ssh` runs on a worker, as its shell reads it."""
    command = next(word for word in shlex.split(line) if word.startswith("--command="))
    return shlex.split(command.removeprefix("--command="))


def test_a_dry_run_shows_every_command_and_asks_nobody(cloud):
    shown = cloud.run("tpu_pod.sh", *POD, "--spot", "--nfs", "10.0.0.2:/share", "--dry-run", *TRAIN).stdout.splitlines()
    verbs = [line.split("queued-resources ")[1].split()[0] for line in shown if line.startswith("gcloud")]
    assert verbs == ["create", "describe", "scp", "ssh", "ssh", "ssh", "ssh", "ssh", "ssh", "delete"]
    wanted = "create pod --zone=us-west4-a --node-id=pod --accelerator-type=v5litepod-16"
    assert shown[0] == f"gcloud compute tpus queued-resources {wanted} --runtime-version=v2-alpha-tpuv5-lite --spot"
    assert not [call for call in cloud.calls("gcloud") + cloud.calls("virtue")]


def test_what_is_given_reaches_the_workers_word_for_word(cloud):
    shown = cloud.run("tpu_pod.sh", *POD, "--dry-run", *TRAIN).stdout.splitlines()
    (start,) = [remote(line) for line in shown if " start " in line]
    assert start == ["bash", "virtue_jax/launch/on_worker.sh", "start", "v5e", *TRAIN[1:]]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("--tpu", "v6e:16x16"), "--accelerator-type=v6e-256 --runtime-version=v2-alpha-tpuv6e"),
        (("--tpu", "v5p:4x4x8"), "--type=v5p --topology=4x4x8 --runtime-version=v2-alpha-tpuv5"),
        (("--tpu", "v4:2x2x2", "--runtime", "mine"), "--type=v4 --topology=2x2x2 --runtime-version=mine"),
        (("--slices", "4"), "--node-count=4 --node-prefix=pod"),
        (("--reserved", "--create", "--internal-ips"), "--reserved --internal-ips"),
        (("--project", "ours"), "--project=ours"),
        (("--reservation", "projects/p/r"), "gcloud alpha compute tpus queued-resources create pod"),
    ],
)
def test_every_kind_of_pod_is_asked_for_by_its_own_arguments(cloud, options, wanted):
    assert wanted in cloud.run("tpu_pod.sh", *POD, *options, "--dry-run", *TRAIN).stdout.splitlines()[0]


def test_a_run_over_slices_lays_its_mesh_over_them(cloud):
    shown = cloud.run("tpu_pod.sh", *POD, "--slices", "2", "--dry-run", *TRAIN).stdout.splitlines()
    (start,) = [remote(line) for line in shown if " start " in line]
    assert start[-1] == "--config.mesh.slices=2"
    given = cloud.run("tpu_pod.sh", *POD, "--slices", "2", "--dry-run", *TRAIN, "--config.mesh.slices=1")
    assert "--config.mesh.slices=2" not in given.stdout


def test_every_ssh_and_scp_goes_the_way_that_is_asked_for(cloud):
    shown = cloud.run("tpu_pod.sh", *POD, "--ssh", "--tunnel-through-iap", "--dry-run", *TRAIN).stdout.splitlines()
    remote_lines = [line for line in shown if " ssh " in line or " scp " in line]
    assert len(remote_lines) == 6 and all(" --quiet --tunnel-through-iap " in line for line in remote_lines)


def test_a_preempted_pod_is_asked_for_again_and_the_run_finishes(cloud):
    cloud.plan(workers=WORKERS, lives=[4, None], ends=[["hangs"] * WORKERS, [0] * WORKERS])
    said = cloud.run("tpu_pod.sh", *POD, *TRAIN).stderr
    assert len(cloud.calls("gcloud", "create")) == 2
    assert len(cloud.calls("gcloud", "scp")) == 2 and len(cloud.calls("git", "archive")) == 1
    # One that was suspended, one that has finished.
    assert len(cloud.calls("gcloud", "delete", "--force")) == 2
    assert "SUSPENDED" in said and said.splitlines()[-1] == "[launch] finished"
    started = [call for call in cloud.calls("virtue") if call["arguments"][0] == "train"]
    assert {call["home"] for call in started} == {f"life{i}-worker{j}" for i in (0, 1) for j in range(WORKERS)}
    assert all(call["arguments"] == ["train", "--distributed", *TRAIN[1:]] for call in started)
    assert all(call["LIBTPU_INIT_ARGS"].strip() == "--flag_of_v5e=true" for call in started)
    assert all(call["folder"].endswith(f"{call['home']}/virtue_jax") for call in started)
    assert not list(cloud.folder.rglob("hacked"))


@pytest.mark.parametrize("statuses", [[2, 0], [137, 2]])
def test_a_run_that_cannot_go_on_is_not_tried_again(cloud, statuses):
    # One that was killed is a reason to stop the others, which then do not end by themselves.
    cloud.plan(workers=WORKERS, ends=[statuses], last=0)
    own = next(status for status in statuses if status in (1, 2))
    done = cloud.run("tpu_pod.sh", *POD, *TRAIN, status=own)
    assert f"cannot go on: a worker ended with {own}" in done.stderr
    assert f"worker {statuses.index(own)} ends: {own}" in done.stdout
    assert len(cloud.calls("gcloud", "create")) == len(cloud.calls("gcloud", "delete")) == 1


@pytest.mark.parametrize("status", [70, 137])
def test_after_an_interruption_it_is_started_again_on_the_same_machines(cloud, status):
    # The other worker has lost its neighbour, and hangs.
    cloud.plan(workers=WORKERS, ends=[[status, "hangs"], [0, 0]])
    cloud.run("tpu_pod.sh", *POD, *TRAIN)
    assert len(cloud.calls("gcloud", "create")) == len(cloud.calls("gcloud", "delete")) == 1
    assert cloud.calls("gcloud", "on_worker.sh stop")
    assert len(cloud.calls("gcloud", "scp")) == 1  # what was installed for the first start
    assert len([call for call in cloud.calls("virtue") if call["arguments"][0] == "train"]) == 2 * WORKERS


def test_what_could_not_be_installed_is_not_started(cloud):
    cloud.plan(ends=[[0]], refusals={"on_worker.sh install": 1})
    said = cloud.run("tpu_pod.sh", *POD, *TRAIN).stderr
    assert "pod could not be set up: starting again" in said
    assert len(cloud.calls("gcloud", "on_worker.sh install")) == 2 and len(cloud.calls("gcloud", " start ")) == 1


def test_workers_that_do_not_answer_are_given_back_and_asked_for_anew(cloud):
    # Asked once before the start, and ten times after it, in vain.
    cloud.plan(lives=[None, None], ends=[["hangs"], [0]], refusals={"on_worker.sh status": 11})
    said = cloud.run("tpu_pod.sh", *POD, *TRAIN).stderr
    assert "its workers do not answer" in said
    assert len(cloud.calls("gcloud", "create")) == len(cloud.calls("gcloud", "delete")) == 2


def test_a_cloud_that_is_silent_for_a_while_is_waited_for(cloud):
    cloud.plan(silences=9, ends=[[0]])
    cloud.run("tpu_pod.sh", *POD, *TRAIN)
    assert len(cloud.calls("gcloud", "create")) == len(cloud.calls("gcloud", "delete")) == 1


def test_what_nobody_has_seen_is_not_deleted(cloud):
    cloud.plan(silences=99)
    said = cloud.run("tpu_pod.sh", *POD, *TRAIN, status=2).stderr
    assert "gcloud does not say how pod is" in said and "if it is there it stays" in said
    assert not cloud.calls("gcloud", "create") and not cloud.calls("gcloud", "delete")


def test_retries_are_used_up(cloud):
    cloud.plan(ends=[[70]] * 3)
    said = cloud.run("tpu_pod.sh", *POD, "--retries", "2", "--keep", *TRAIN, status=75).stderr
    assert "and 2 retries are used up" in said and "pod is kept: --delete deletes it" in said
    assert not cloud.calls("gcloud", "delete")


def test_what_was_kept_is_found_again_and_can_be_deleted(cloud):
    cloud.plan(ends=[[0], [0]])
    cloud.run("tpu_pod.sh", *POD, "--keep", *TRAIN)
    cloud.run("tpu_pod.sh", *POD, "--keep", *TRAIN)
    assert len(cloud.calls("gcloud", "create")) == 1 and not cloud.calls("gcloud", "delete")
    cloud.run("tpu_pod.sh", "--name", "pod", "--zone", "us-west4-a", "--delete")
    assert len(cloud.calls("gcloud", "delete")) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (POD, "no --config among the arguments"),
        ((*POD, "--", "--workdir", "/mnt/virtue/a"), "no --config among the arguments"),
        ((*POD, "--", "--config", "a.py"), "no --workdir among the arguments"),
        ((*POD, "--", "--config=a.py", "--workdir=gs://bucket/run"), "expected a folder on a file system"),
        ((*POD, "--", "--config=a.py", "--workdir", "runs/a"), "expected the whole path of a folder"),
        ((*POD, "--tpu", "v5e:16", *TRAIN), "expected CHIP:SHAPE, as v5e:16x16"),
        ((*POD, "--tpu", "v5e:4x4x4", *TRAIN), "slices of v5e have 2 sides"),
        ((*POD, "--tpu", "v5e:3x5", *TRAIN), "slices of v5e are 1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"),
        ((*POD, "--tpu", "v9:4x4", *TRAIN), "there are v4, v5e, v5p, v6e, tpu7x"),
        ((*POD, "--tpu", "tpu7x:4x4x4", *TRAIN), "use launch/gke"),
        ((*POD, "--name", "Pod!", *TRAIN), "expected a-z, 0-9 and -"),
        ((*POD, "--zone", "west", *TRAIN), "expected a zone"),
        ((*POD, "--slices", "0", *TRAIN), "--slices 0: expected a whole number from 1"),
        ((*POD, "--slices", "a[$(touch hacked)]", *TRAIN), "expected a whole number"),
        ((*POD, "--spot", "--reserved", *TRAIN), "choose one"),
        ((*POD, "--nfs", "share", *TRAIN), "expected HOST:/EXPORT"),
        ((*POD, "--sport", "x", *TRAIN), "--sport: no such option"),
        ((*POD, "spot", *TRAIN), "arguments of `virtue train` follow --"),
        ((*POD, "--project"), "--project: no value"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_asked_for(cloud, arguments, told):
    said = cloud.refused("tpu_pod.sh", *arguments)
    assert said.startswith("tpu_pod.sh: ") and told in said
