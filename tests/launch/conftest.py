"""Launch scripts with programs of a cloud that only write down what they were asked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
PROGRAMS = ("gcloud", "git", "virtue", "sbatch", "srun", "scontrol", "scancel", "kubectl", "xpk")


class Cloud:
    """A folder of fake programs, first on PATH, and what they were asked."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "bin").mkdir()
        for name in PROGRAMS:
            (folder / "bin" / name).symlink_to(ROOT / "tests/launch/fake_cloud.py")

    def plan(self, **what) -> None:
        (self.folder / "plan.json").write_text(json.dumps(what))

    def run(self, script: str, *arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess:
        path = os.pathsep.join([str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = os.environ | {"PATH": path, "FAKES": str(self.folder)} | environment
        environment.pop("XLA_FLAGS", None)
        command = ["bash", str(LAUNCH / script), *arguments]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == status, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done

    def calls(self, program: str, *words: str) -> list[dict]:
        """Of this program, with all of these among or in its arguments."""
        file = self.folder / "calls.jsonl"
        every = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        own = [call for call in every if call["program"] == program]
        return [call for call in own if all(any(word in a for a in call["arguments"]) for word in words)]

    def refused(self, script: str, *arguments: str) -> str:
        """The one line with which a script ends with status 2; it has asked nothing of anybody."""
        said = self.run(script, *arguments, status=2)
        assert not said.stdout and said.stderr.count("\n") == 1, said.stderr
        assert not (self.folder / "calls.jsonl").exists()
        return said.stderr


@pytest.fixture
def cloud(tmp_path) -> Cloud:
    return Cloud(tmp_path)
