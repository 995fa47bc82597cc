"""Where the golden data is and what it holds, also for tests that need to know it when they are collected.

tests/golden is a subset that travels with the repository; VIRTUE_GOLDEN points to the whole set.
"""

import functools
import json
import os
from pathlib import Path

import numpy as np

GOLDEN = Path(os.environ.get("VIRTUE_GOLDEN", Path(__file__).parent / "golden"))
TINY = GOLDEN / "tiny"
ARRAYS = TINY / "golden"


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of tiny/golden/NAME.npz."""
    with np.load(ARRAYS / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


@functools.cache
def facts(name: str) -> dict:
    """tiny/golden/NAME.json."""
    return json.loads((ARRAYS / f"{name}.json").read_text())


def stems(pattern: str) -> list[str]:
    """Names, without .npz, of the array files that are there, sorted; a pattern that finds none is an error."""
    found = sorted(path.stem for path in ARRAYS.glob(f"{pattern}.npz"))
    if not found:
        raise FileNotFoundError(f"{ARRAYS}: no {pattern}.npz; VIRTUE_GOLDEN must name a folder with tiny/ in it")
    return found
