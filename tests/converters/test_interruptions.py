"""A full disk or a kill leaves nothing that loads, and what stood there before as it was."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from converters.importing import run
from virtue_jax.config import Numerics
from virtue_jax.exit_status import REFUSED
from virtue_jax.model_directory import load_config, load_model, read_head

ROOT = Path(__file__).parents[2]


def command(request, *more: str) -> list[str]:
    argv = [sys.executable, "-m", "converters", "import", "--vlm", request.vlm, "--sam2", request.sam2]
    return [str(x) for x in [*argv, "--connector", request.connector, "--out", request.out, *more]]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


@pytest.mark.slow
@pytest.mark.parametrize("size", [60_000, 400_000])
def test_a_full_disk_leaves_nothing_new_and_the_previous_model_intact(request_for, size):
    """A cap on file sizes fails writes as a full disk does: 60 kB stops the parameters, 400 kB the carried tensors."""
    request = request_for()
    run(request)
    before = read_head(request.out)
    limit = f"import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
    argv = command(request, "--overwrite", "--seed", "5")
    argv[1:3] = ["-c", f"{limit}; runpy.run_module('converters', run_name='__main__', alter_sys=True)"]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True)
    assert done.returncode == REFUSED
    assert f"{request.out} was not written" in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in request.out.parent.iterdir()] == ["model"]
    assert read_head(request.out) == before
    load_model(request.out, Numerics())


@pytest.mark.slow
@pytest.mark.parametrize("previous", [False, True])
def test_kill_9_leaves_nothing_that_loads_and_the_next_run_cleans_up(request_for, previous):
    request = request_for()
    if previous:
        run(request)
    process = subprocess.Popen(command(request, "--overwrite"), env=environment(), stderr=subprocess.DEVNULL)
    partial = wait_for_partial(request.out.parent, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert partial.exists()
    with pytest.raises(FileNotFoundError, match="not a model directory"):
        load_config(partial)
    assert request.out.exists() == previous
    if previous:
        load_model(request.out, Numerics())
    done = subprocess.run(command(request, "--overwrite"), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in request.out.parent.iterdir()] == ["model"]
    load_model(request.out, Numerics())


def wait_for_partial(parent: Path, process: subprocess.Popen) -> Path:
    """The unfinished directory, as soon as parameters are being written into it."""
    for _ in range(6000):
        for path in parent.glob(".model.incomplete.*"):
            if any(path.rglob("manifest.ocdbt")):
                return path
        assert process.poll() is None, "the import ended before it could be killed"
        time.sleep(0.01)
    raise AssertionError("no unfinished directory appeared")


def test_what_is_read_is_not_overwritten(request_for):
    request = request_for()
    held = dataclasses.replace(request, out=request.vlm, overwrite=True)
    with pytest.raises(FileExistsError, match="which is read and would be deleted"):
        run(held)
    assert (request.vlm / "model.safetensors").is_file()


def test_an_existing_directory_is_not_overwritten_unasked(request_for):
    request = request_for()
    request.out.mkdir()
    (request.out / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="--overwrite"):
        run(request)
    assert (request.out / "mine.txt").read_text() == "keep"
