"""A run's model as a directory, whichever processes hold its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from virtue_jax.model_directory import save_model
from virtue_jax.parallel.processes import barrier, is_leader, to_leader
from virtue_jax.train.step.stages import LOG_TEMPERATURE
from virtue_jax.train.survival.watchdog import LONG, Watchdog
from virtue_jax.train.weights import StartingModel


def write_model(
    folder: Path,
    start: StartingModel,
    weights: Mapping[str, jax.Array],
    watchdog: Watchdog,
    *,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """The model with these weights, on the leader's side of the file system; all processes call it.

    Raises:
        OSError: as `save_model`.
    """
    weights = {path: x for path, x in weights.items() if path != LOG_TEMPERATURE}
    if jax.process_count() > 1:
        weights = {path: _gathered(weights[path], watchdog) for path in sorted(weights)}
    if is_leader():
        save_model(folder, start.virtue, weights, **start.companions, provenance=provenance, overwrite=overwrite)
    barrier("the model is written")


def _gathered(x: jax.Array, watchdog: Watchdog) -> np.ndarray | None:
    watchdog.beat("writing the model", LONG)
    return to_leader(x)
