"""docs/launching.md: what it quotes is what is said, and what it types is understood."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/launching.md").read_text()
SOURCES = "\n".join(
    " ".join(path.read_text().split())
    for top in ("virtue_jax", "launch")
    for path in (ROOT / top).rglob("*")
    if path.suffix in (".py", ".sh", ".sbatch")
)
# Literal text ends where a string of the source is continued on the next line, or a value begins.
QUOTED = (
    "gcloud does not say how",
    "could not be set up",
    "is not a model directory",
    "every row group's rows must divide by",
    "processes hold different rows",
    "a step needs an estimated",
    "holds a run with another configuration",
    "was trained over frozen weights with digest",
    "could not be written: no space left",
    "watchdog: nothing finished for",
    "another process of the run ended",
)


@pytest.mark.parametrize("said", QUOTED)
def test_a_symptom_is_quoted_as_it_is_said(said):
    assert said in PAGE and said in SOURCES


def commands(script: str) -> list[list[str]]:
    text = PAGE.replace("\\\n", " ")
    lines = re.findall(rf"^\s*(launch/{script} .*?)(?:\s+#.*)?$", text, re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("script", ["tpu_pod.sh", "gke/run.sh", "slurm.sh"])
def test_what_the_page_types_is_understood(cloud, script):
    typed = commands(script)
    assert typed
    for command in typed:
        at = command.index("--")
        ours = [{"IMAGE": "image", "GPU_IMAGE": "image"}.get(word, word) for word in command[1:at]]
        shown = cloud.run(script, *ours, "--dry-run", *command[at:]).stdout
        assert "--config" in shown and not cloud.calls("gcloud")


def test_every_launcher_is_on_the_page():
    named = set(re.findall(r"`launch/([a-z_/]+\.(?:sh|py))`", PAGE))
    assert {"tpu_pod.sh", "gke/run.sh", "gke/xpk.sh", "slurm.sh", "local.py"} <= named
    assert all((ROOT / "launch" / name).exists() for name in named)
