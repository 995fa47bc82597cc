"""Fixtures of the converter tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from converters.importing import ImportRequest, open_request
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
