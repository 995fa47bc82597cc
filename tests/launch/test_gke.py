"""launch/gke: the exact yaml, against the schemas of Kubernetes and of JobSet."""

import shlex

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

IMAGE = ("--image", "us-docker.pkg.dev/p/virtue/virtue_jax:1", "--claim", "share")
TPU = ("--name", "scar", "--tpu", "v5e:16x16", *IMAGE)
GPU = ("--name", "scar", "--gpus", "nvidia-h100-80gb:8", "--nodes", "4", *IMAGE)
TRAIN = (
    "--",
    "--config",
    "a file.py",
    "--workdir",
    '/mnt/virtue/"it\'s"',
    "--config.x=$(HOME) $$ `id`\\n\t: {}#é",
    "${CLAIM}",
)
KUBERNETES = "1.31"  # podFailurePolicy is stable from here on


def rendered(cloud, *arguments: str) -> dict:
    command, text = cloud.run("gke/run.sh", *arguments, "--dry-run", *TRAIN).stdout.split("\n", 1)
    assert command == "kubectl apply -f -" and not cloud.calls("kubectl")
    assert not [line for line in text.splitlines() if "${" in line and "args:" not in line and "#" not in line]
    return yaml.safe_load(text)


def job_of(jobset: dict) -> dict:
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container_of(jobset: dict) -> dict:
    (container,) = job_of(jobset)["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("arguments", [TPU, (*TPU, "--slices", "2"), GPU], ids=["one slice", "two slices", "GPUs"])
def test_the_yaml_is_valid(cloud, arguments):
    jobset = rendered(cloud, *arguments)
    # The model knows every field and drops what it does not know: nothing may be dropped.
    assert JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset
    # Names and values that the schema of JobSet lists, and the model leaves open.
    policy = jobset["spec"]["failurePolicy"]
    assert all(rule["action"] == "FailJobSet" and rule["name"].isalnum() for rule in policy["rules"])
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}, "spec": job_of(jobset)}
    kubernetes_validate.validate(job, KUBERNETES, strict=True)


def test_a_wrong_field_would_be_found(cloud):
    jobset = rendered(cloud, *TPU)
    job_of(jobset)["template"]["spec"]["hostNetwrk"] = True
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}, "spec": job_of(jobset)}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, KUBERNETES, strict=True)
    assert JobsetV1alpha2JobSet.from_dict(jobset).to_dict() != jobset


@pytest.mark.parametrize("arguments", [TPU, GPU], ids=["TPUs", "GPUs"])
def test_arguments_reach_the_container_word_for_word(cloud, arguments):
    found = container_of(rendered(cloud, *arguments))["args"]
    # Kubernetes reads $$ as $.
    assert [word.replace("$$", "$") for word in found[1:]] == list(TRAIN[1:])
    assert container_of(rendered(cloud, *TPU, "--slices", "2"))["args"][-1] == "--config.mesh.slices=2"


@pytest.mark.parametrize(
    ("tpu", "hosts", "chips", "label"),
    [
        ("v4:4x4x8", 32, 4, "tpu-v4-podslice"),
        ("v5e:16x16", 64, 4, "tpu-v5-lite-podslice"),
        ("v5p:4x4x4", 16, 4, "tpu-v5p-slice"),
        ("v6e:1x1", 1, 1, "tpu-v6e-slice"),
        ("tpu7x:4x4x8", 32, 4, "tpu7x"),
    ],
)
def test_a_slice_is_asked_for_by_label_shape_and_hosts(cloud, tpu, hosts, chips, label):
    jobset = rendered(cloud, *TPU, "--tpu", tpu, "--slices", "3")
    job = job_of(jobset)
    selector = job["template"]["spec"]["nodeSelector"]
    chip, shape = tpu.split(":")
    assert selector == {"cloud.google.com/gke-tpu-accelerator": label, "cloud.google.com/gke-tpu-topology": shape}
    assert job["parallelism"] == job["completions"] == hosts
    assert container_of(jobset)["resources"]["limits"] == {"google.com/tpu": chips}
    assert container_of(jobset)["args"][0] == chip
    assert jobset["spec"]["replicatedJobs"][0]["replicas"] == 3


@pytest.mark.parametrize("arguments", [TPU, GPU], ids=["TPUs", "GPUs"])
def test_what_cannot_go_on_is_not_started_again_and_the_rest_is(cloud, arguments):
    jobset = rendered(cloud, *arguments, "--retries", "7")
    (rule,) = job_of(jobset)["podFailurePolicy"]["rules"]
    codes = rule["onExitCodes"]
    assert rule["action"] == "FailJob" and codes["operator"] == "In" and codes["values"] == [1, 2, 126, 127]
    assert codes["containerName"] == container_of(jobset)["name"]
    assert job_of(jobset)["backoffLimit"] == 0 and job_of(jobset)["template"]["spec"]["restartPolicy"] == "Never"
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7 and policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_the_processes_of_gpu_nodes_find_the_first_pod(cloud):
    jobset = rendered(cloud, *GPU)
    values = {item["name"]: item["value"] for item in container_of(jobset)["env"]}
    assert values == {"VIRTUE_COORDINATOR": "scar-nodes-0-0.scar:9876", "VIRTUE_PROCESSES": "4"}
    assert container_of(jobset)["resources"]["limits"] == {"nvidia.com/gpu": 8}


def test_without_a_dry_run_kubectl_is_given_the_yaml(cloud):
    said = cloud.run("gke/run.sh", *TPU, "--context", "ours", *TRAIN).stderr
    (call,) = cloud.calls("kubectl")
    assert call["arguments"] == ["--context=ours", "apply", "-f", "-"]
    assert yaml.safe_load(call["input"])["metadata"]["name"] == "scar"
    assert "kubectl --context=ours get jobset scar" in said


def test_xpk_is_given_the_same_run(cloud):
    options = ("--name", "scar", "--cluster", "c", "--tpu", "v5p:4x4x8", "--image", "i", "--storage", "share")
    shown = shlex.split(cloud.run("gke/xpk.sh", *options, "--slices", "2", "--dry-run", *TRAIN).stdout)
    assert shown[:3] == ["xpk", "workload", "create"] and not cloud.calls("xpk")
    wanted = {"--workload=scar", "--cluster=c", "--tpu-type=v5p-4x4x8", "--num-slices=2", "--docker-image=i"}
    assert wanted | {"--max-restarts=50", "--restart-on-exit-codes=69,70,75", "--storage=share"} <= set(shown)
    inside = shlex.split(shown[-1].removeprefix("--command="))
    assert inside[2:] == ["v5p", *TRAIN[1:], "--config.mesh.slices=2"]
    cloud.run("gke/xpk.sh", *options, *TRAIN)
    assert cloud.calls("xpk")[0]["arguments"][:2] == ["workload", "create"]


@pytest.mark.parametrize(
    ("script", "arguments", "told"),
    [
        ("gke/run.sh", (*TPU, "--name", "UP", *TRAIN), "expected a-z, 0-9 and -"),
        ("gke/run.sh", (*TPU, "--image", "a: b", *TRAIN), "expected an image"),
        ("gke/run.sh", (*TPU, "--claim", "a\nb: c", *TRAIN), "expected the name of a claim"),
        ("gke/run.sh", (*TPU, "--tpu", "v5p:16x16", *TRAIN), "slices of v5p have 3 sides"),
        ("gke/run.sh", (*TPU, "--gpus", "nvidia-l4:1", *TRAIN), "choose one"),
        ("gke/run.sh", ("--name", "a", "--gpus", "nvidia-l4", *IMAGE, *TRAIN), "expected KIND:GPUS"),
        ("gke/run.sh", (*TPU, "--chips-per-host", "3", *TRAIN), "does not divide the 256 chips"),
        (
            "gke/run.sh",
            (*TPU, "--", "--config=a.py", "--workdir", "gs://bucket/run"),
            "expected a folder on a file system",
        ),
        ("gke/run.sh", (*TPU, "--", "--config=a.py", "--workdir", "/\x07"), "has a control character"),
        ("gke/run.sh", (*TPU, "--", "--config=a.py"), "no --workdir"),
        ("gke/xpk.sh", ("--name", "a", "--tpu", "v5e:4x4", "--image", "i", *TRAIN), "no --cluster"),
        ("gke/xpk.sh", ("--name", "a", "--cluster", "c", "--tpu", "v5e:4x4", *TRAIN), "no --image"),
    ],
)
def test_bad_input_is_refused_in_one_line(cloud, script, arguments, told):
    assert told in cloud.refused(script, *arguments)
