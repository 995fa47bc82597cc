"""Fixtures that every test may use."""

import io
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
from golden_files import GOLDEN
from PIL import Image


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden data: `tiny/` checkpoints, `tiny/golden/` arrays, `full_size/` names and shapes."""
    return GOLDEN


@pytest.fixture(scope="session")
def tiny_model_dir(golden, tmp_path_factory):
    """`tiny_model_dir(adapter)`: a float32 model directory of the golden tiny checkpoint, with its adapter or not."""
    from converters.importing import ImportRequest, run

    tiny, made = golden / "tiny", {}

    def model_dir(adapter: bool = False) -> Path:
        if adapter not in made:
            made[adapter] = tmp_path_factory.mktemp("tiny") / ("adapted" if adapter else "base")
            run(
                ImportRequest(
                    out=made[adapter],
                    sam2=tiny / "sam2_tiny.pt",
                    vlm=tiny / "vlm",
                    connector=tiny / "sam2_reducer_and_vlm_layer.pth",
                    adapter=tiny / "adapter" if adapter else None,
                )
            )
        return made[adapter]

    return model_dir


@pytest.fixture(scope="session")
def png():
    """uint8 array -> PNG bytes."""

    def encode(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    return encode
