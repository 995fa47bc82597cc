"""`python -m virtue_jax.train.reproduce DIR`: runs a kept step again, and says what is not finite in it."""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from rich.table import Table

from virtue_jax.batch import Batch
from virtue_jax.config import VirtueConfig, from_dict
from virtue_jax.console import console
from virtue_jax.exit_status import DONE, NOT_FINITE
from virtue_jax.parallel.mesh import MeshConfig, make_mesh, put_rows
from virtue_jax.train.step.config import TrainConfig
from virtue_jax.train.step.setup import setup
from virtue_jax.train.step.stages import TrainState
from virtue_jax.train.survival.digest import digest
from virtue_jax.train.survival.nonfinite import RUN, grouped
from virtue_jax.train.weights import load_weights


def reproduce(folder: Path) -> tuple[dict[str, float], dict[str, int]]:
    """The step of `workdir/nonfinite_step_K` again, on this machine's devices.

    Returns:
        (metrics, {array: how many of its values are not finite}), of the towers' outputs and the gradients; empty
        where all are finite: then what happened depended on the mesh or the machine.

    Raises:
        FileNotFoundError: not a whole reproducer. ValueError: the model is another one by now.
    """
    if not (folder / RUN).is_file():
        raise FileNotFoundError(f"{folder} is not a whole reproducer (no {RUN}); give a workdir/nonfinite_step_K")
    record = json.loads((folder / RUN).read_text())
    config = from_dict(TrainConfig, record["config"], str(folder / RUN))
    virtue = from_dict(VirtueConfig, record["virtue"], str(folder / RUN))
    parts = [dict(np.load(folder / f"batch_{process}.npz")) for process in range(record["processes"])]
    groups = grouped(parts)
    mesh = _mesh(groups, [max(1, group.micro_batches) for group in config.data.rows.values()])
    run = setup(dataclasses.replace(config, mesh=MeshConfig()), virtue, mesh)
    frozen = load_weights(config, virtue, run.frozen)
    if digest(frozen) != record["frozen"]:
        raise ValueError(
            f"{folder}: the step ran over frozen weights with digest {record['frozen']}, those of "
            f"{config.model.directory!r} have {digest(frozen)}; put the model back that the run started from"
        )
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(epath.Path((folder / "state").absolute()), run.state._asdict())
    return _run(run, TrainState(**state), frozen, put_rows(groups, mesh))


def _run(run, state: TrainState, frozen: Mapping, groups) -> tuple[dict[str, float], dict[str, int]]:
    outputs = run.towers(frozen, groups)
    gradients, metrics = run.gradients(state.trainable, state.step, frozen, run.embed_inputs(groups), outputs)
    counts = {f"parameter {path}": _count(x) for path, x in (frozen | state.trainable).items()}
    counts |= {
        f"tower output {jax.tree_util.keystr(path)}": _count(x)
        for path, x in jax.tree_util.tree_leaves_with_path(outputs)
    }
    counts |= {f"gradient {path}": _count(x) for path, x in gradients.items()}
    return {name: float(value) for name, value in metrics.items()}, {name: n for name, n in counts.items() if n}


def _count(x) -> int:
    return int((~np.isfinite(np.asarray(x, np.float32))).sum())


def _mesh(groups: tuple[Batch, ...], micro_batches: list[int]):
    """As many of this machine's devices as divide the rows of every micro-batch."""
    rows = math.gcd(*(len(batch.tokens) // parts for batch, parts in zip(groups, micro_batches, strict=True)))
    count = next(n for n in range(jax.device_count(), 0, -1) if rows % n == 0)
    return make_mesh(MeshConfig(), jax.devices()[:count])


def main(argv: list[str] | None = None) -> None:
    """Prints what is not finite; ends with `NOT_FINITE` where anything is."""
    parser = argparse.ArgumentParser(prog="python -m virtue_jax.train.reproduce", description=__doc__)
    parser.add_argument("folder", type=Path, help="workdir/nonfinite_step_K")
    metrics, counts = reproduce(parser.parse_args(argv).folder)
    screen = console()
    screen.print("  ".join(f"{name} {value:.6g}" for name, value in sorted(metrics.items())))
    table = Table("array", "values that are not finite")
    for name, count in counts.items():
        table.add_row(name, str(count))
    screen.print(table if counts else "everything is finite here: it depended on the mesh or the machine")
    sys.exit(NOT_FINITE if counts or not math.isfinite(metrics["loss"]) else DONE)


if __name__ == "__main__":
    main()
