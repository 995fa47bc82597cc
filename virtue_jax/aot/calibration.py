"""Factors on a prediction's terms, fitted to steps that were measured (`virtue scale --calibrate`)."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

FORMAT = 1
# Term of a report -> the factor that it is multiplied by.
TERMS = {
    "matrix": "matrix",
    "memory": "matrix",
    "attention": "attention",
    "communication": "communication",
    "dcn": "communication",
}


@dataclass(frozen=True)
class Factors:
    """matrix: on matrix products and what memory adds to them; attention: on the attention kernels, which in SAM-2's
    windows are the projections too; communication: on both networks. chips: the chips whose steps were measured; of
    others the factors say nothing."""

    matrix: float
    attention: float
    communication: float
    chips: tuple[str, ...] = ()

    def covers(self, chip: str) -> bool:
        return chip in self.chips


def calibrated(terms: Mapping[str, float], factors: Factors) -> float:
    """Seconds of a step; terms: of a report, seconds by name.

    Raises:
        ValueError: a term that no factor is for.
    """
    unknown = sorted(set(terms) - set(TERMS))
    if unknown:
        raise ValueError(f"calibration: terms {', '.join(unknown)}; known are {', '.join(TERMS)}")
    return sum(seconds * getattr(factors, TERMS[name]) for name, seconds in terms.items())


def load(path: str | Path) -> Factors:
    """Reads the factors that `virtue scale --calibrate` has written.

    Raises:
        ValueError: no calibration, or one that makes no sense.
        OSError: the file cannot be read.
    """
    try:
        values = json.loads(Path(path).read_text())
        loaded = Factors(**values["factors"], chips=tuple(values["chips"]))
        numbers = {name: float(value) for name, value in asdict(loaded).items() if name != "chips"}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected what `virtue scale --calibrate` writes: {type(error).__name__}: {error}"
        ) from error
    wrong = {name: value for name, value in numbers.items() if not (math.isfinite(value) and value >= 0)}
    if values.get("format") != FORMAT or wrong or not any(numbers.values()):
        raise ValueError(
            f"{path}: format {values.get('format')!r}, factors {numbers}: expected format {FORMAT}, "
            "finite factors of at least 0, not all 0"
        )
    return loaded
