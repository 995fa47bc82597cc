"""Factors of a prediction's terms, fitted to measured steps: as many as the runs can tell apart."""

import itertools
from collections.abc import Sequence

import numpy as np

from virtue_jax.aot.calibration import FORMAT, TERMS, Factors, calibrated
from virtue_jax.aot.study.content_key import versions
from virtue_jax.aot.study.measured import Measured

# What shares a factor, from one for all to one each; the highest that the runs determine is fitted.
LEVELS = (
    (("matrix", "attention", "communication"),),
    (("matrix", "attention"), ("communication",)),
    (("matrix",), ("attention",), ("communication",)),
)
# Of the columns that are fitted, each a share of the measured steps: above it, runs are too alike to tell factors
# apart, and an error of 1 % in a step is one of 20 % and more in a factor.
CONDITION = 20.0


def fit(runs: Sequence[Measured]) -> tuple[Factors, int]:
    """(factors, how many of them are free): least squares of the relative error, none of them negative."""
    seconds = np.array([run.seconds for run in runs])
    for level in reversed(LEVELS[: len(runs)]):
        design = _design(runs, level) / seconds[:, None]
        if len(level) > 1 and not _determined(design):
            continue
        solution = _non_negative(design)
        factors = {name: float(x) for names, x in zip(level, solution, strict=True) for name in names}
        return Factors(**factors, chips=tuple(sorted({run.chip for run in runs}))), len(level)
    raise AssertionError("one factor can always be fitted")


def calibration(runs: Sequence[Measured]) -> dict:
    """What `virtue_jax.aot.calibration.load` reads, and how well it does: errors are predicted / measured - 1.

    left_out: of each run as the others predict it; None for a single run, of which nothing can be told.
    """
    factors, freed = fit(runs)
    told = []
    for i, run in enumerate(runs):
        others = [other for j, other in enumerate(runs) if j != i]
        told.append(
            {
                "run": run.name,
                "chip": run.chip,
                "measured": run.seconds,
                "records": run.used,
                "records_left_out": run.left,
                "uncalibrated": run.predicted / run.seconds - 1,
                "in_sample": calibrated(run.terms, factors) / run.seconds - 1,
                "left_out": calibrated(run.terms, fit(others)[0]) / run.seconds - 1 if others else None,
            }
        )
    return {
        "format": FORMAT,
        "factors": {name: getattr(factors, name) for name in ("matrix", "attention", "communication")},
        "freed": freed,
        "chips": list(factors.chips),
        "errors": {key: _rms([each[key] for each in told]) for key in ("uncalibrated", "in_sample", "left_out")},
        "runs": told,
        "versions": versions(),
    }


def _design(runs: Sequence[Measured], level: tuple[tuple[str, ...], ...]) -> np.ndarray:
    """[runs, factors] seconds that each factor multiplies."""
    columns = [
        [sum(seconds for term, seconds in run.terms.items() if TERMS[term] in names) for run in runs] for names in level
    ]
    return np.array(columns).T


def _determined(design: np.ndarray) -> bool:
    lengths = np.linalg.norm(design, axis=0)
    return bool(np.all(lengths > 0)) and np.linalg.cond(design / lengths) < CONDITION


def _non_negative(design: np.ndarray) -> np.ndarray:
    """x >= 0 of the least |design x - 1|: the best of all choices of which are 0, since there are three at most."""
    count = design.shape[1]
    best, least = np.zeros(count), np.inf
    for size in range(1, count + 1):
        for kept in map(list, itertools.combinations(range(count), size)):
            x = np.zeros(count)
            x[kept] = np.linalg.lstsq(design[:, kept], np.ones(len(design)), rcond=None)[0]
            error = float(np.sum((design @ x - 1) ** 2))
            if np.all(x >= 0) and error < least * (1 - 1e-12):
                best, least = x, error
    return best


def _rms(values: Sequence[float | None]) -> float | None:
    return None if None in values else float(np.sqrt(np.mean(np.square(values))))
