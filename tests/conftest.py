"""Fixtures that every test may use."""

import io
import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("COLUMNS", None)  # 80 in a worker of pytest-xdist, and tables would be cut
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Tests compile the same programs again and again: in other tests, workers, subprocesses.
    _compiled = tempfile.TemporaryDirectory(prefix="virtue_jax_compiled_", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name

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
    """`tiny_model_dir(adapter, **changes)`: a float32 model directory of the golden tiny checkpoint.

    adapter: whether with its adapter, or the folder of another. changes: fields of the `ImportRequest` that differ.
    """
    from converters.importing import ImportRequest, run

    tiny, made = golden / "tiny", {}

    def model_dir(adapter: bool | Path = False, **changes) -> Path:
        key = (adapter, *sorted(changes.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("tiny") / "model"
            values = {
                "out": made[key],
                "sam2": tiny / "sam2_tiny.pt",
                "vlm": tiny / "vlm",
                "connector": tiny / "sam2_reducer_and_vlm_layer.pth",
                "adapter": (tiny / "adapter" if adapter is True else adapter) or None,
            }
            run(ImportRequest(**(values | changes)))
        return made[key]

    return model_dir


@pytest.fixture(scope="session")
def png():
    """uint8 array -> PNG bytes."""

    def encode(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    return encode
