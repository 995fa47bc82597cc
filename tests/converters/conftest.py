"""Fixtures of the converter tests."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from converters.errors import CheckpointError
from converters.importing import ImportRequest, open_request, run
from converters.plan import read_state


@pytest.fixture(scope="session")
def tiny(golden) -> Path:
    """The golden tiny checkpoints."""
    return golden / "tiny"


@pytest.fixture
def request_for(tiny, tmp_path) -> Callable[..., ImportRequest]:
    """`request_for(**changes)`: the import of the tiny base model with its trained connector, changed as said."""

    def make(**changes) -> ImportRequest:
        values = dict(
            out=tmp_path / "model",
            sam2=tiny / "sam2_tiny.pt",
            vlm=tiny / "vlm",
            connector=tiny / "sam2_reducer_and_vlm_layer.pth",
        )
        return ImportRequest(**(values | changes))

    return make


@pytest.fixture(scope="session")
def tiny_state(tiny):
    """{dotted path: array} of the tiny base model, its connector and its adapter."""
    connector = tiny / "sam2_reducer_and_vlm_layer.pth"
    return read_state(
        open_request(
            ImportRequest(
                out=Path("unused"),
                sam2=tiny / "sam2_tiny.pt",
                vlm=tiny / "vlm",
                connector=connector,
                adapter=tiny / "adapter",
            )
        )
    )


@pytest.fixture
def copy(tiny, tmp_path):
    """`copy(name)`: a writable copy of a tiny checkpoint's file or folder."""

    def make(name: str) -> Path:
        target = tmp_path / name
        (shutil.copytree if (tiny / name).is_dir() else shutil.copyfile)(tiny / name, target)
        for path in [target, *target.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        return target

    return make


@pytest.fixture
def problems_of() -> Callable[[ImportRequest], str]:
    """`problems_of(request)`: the text of the one error that the import ends with; nothing was written."""

    def refused(request: ImportRequest) -> str:
        with pytest.raises(CheckpointError) as caught:
            run(request)
        assert not request.out.exists()
        assert [path for path in request.out.parent.iterdir() if "incomplete" in path.name] == []
        return str(caught.value)

    return refused
