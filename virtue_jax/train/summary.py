"""What a run is, said before it starts: parameters per tower, batch shapes, memory."""

import math
from collections import defaultdict

import jax
from rich.console import Console
from rich.table import Table

from virtue_jax.batch import Batch
from virtue_jax.train.setup import TrainSetup


def print_summary(run: TrainSetup, groups: tuple[Batch, ...], memory, console: Console) -> None:
    """memory: the compiled step's `memory_analysis()`, or None where the backend gives none."""
    console.print(_parameter_table(run))
    console.print(_batch_table(groups))
    console.print(f"devices: {run.mesh.size} x {run.mesh.devices.flat[0].device_kind}, mesh {dict(run.mesh.shape)}")
    if memory is not None:
        parts = {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
        }
        console.print("memory per device: " + ", ".join(f"{name} {_bytes(size)}" for name, size in parts.items()))


def _parameter_table(run: TrainSetup) -> Table:
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for params, column in ((run.frozen, (0,)), (run.state.trainable, (0, 1))):
        for path, x in params.items():
            for i in column:
                totals[path.split(".")[0]][i] += math.prod(x.shape)
    table = Table("tower", "parameters", "trainable", title="model")
    for tower, (total, trainable) in sorted(totals.items()):
        table.add_row(tower, f"{total:,}", f"{trainable:,}")
    table.add_row("all", *(f"{sum(t[i] for t in totals.values()):,}" for i in (0, 1)), style="bold")
    return table


def _batch_table(groups: tuple[Batch, ...]) -> Table:
    table = Table("row group", "array", "dtype", "shape", title="batch (all processes)")
    for name, batch in zip(("queries", "targets"), groups, strict=True):
        for field in ("tokens", "patches", "sam_images", "prompt_points", "prompt_masks", "pool"):
            x = getattr(batch, field)
            if x is not None:
                table.add_row(name, field, str(jax.numpy.dtype(x.dtype)), "x".join(map(str, x.shape)))
    return table


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError
