"""Fixtures that every test may use. The golden arrays are found in tests/golden (a subset that travels with the
repository) or where VIRTUE_GOLDEN points (the whole set)."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

GOLDEN = Path(os.environ.get("VIRTUE_GOLDEN", Path(__file__).parent / "golden"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden data: `tiny/` checkpoints, `tiny/golden/` arrays, `full_size/` names and shapes."""
    return GOLDEN
