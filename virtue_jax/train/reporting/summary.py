"""What a run is, said before it starts: parameters per tower, row groups, mesh, memory."""

import math
from collections import defaultdict
from collections.abc import Mapping

import jax
from rich.console import Console
from rich.table import Table

from virtue_jax.train.step.config import TrainConfig
from virtue_jax.train.step.program_memory import ProgramMemory
from virtue_jax.train.step.setup import TrainSetup

_TOLD = ("tokens", "patches", "sam_images", "prompt_points", "prompt_masks", "pool")


def print_summary(run: TrainSetup, config: TrainConfig, memory: Mapping[str, ProgramMemory], console: Console) -> None:
    """memory: of the stages' programs, by name."""
    console.print(_parameter_table(run))
    console.print(_batch_table(run, config))
    mesh = ", ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    where = f"{run.mesh.size} x {run.mesh.devices.flat[0].device_kind} in {jax.process_count()} processes"
    console.print(f"devices: {where}; mesh: {mesh}", highlight=False)
    if memory:
        console.print(_memory_table(memory))


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


def _batch_table(run: TrainSetup, config: TrainConfig) -> Table:
    table = Table("row group", "micro-batches", "array", "dtype", "shape", title="a step (all processes)")
    for (name, group), batch in zip(config.data.rows.items(), run.groups, strict=True):
        for field in _TOLD:
            x = getattr(batch, field)
            if x is not None:
                shape = "x".join(map(str, x.shape))
                table.add_row(name, str(max(1, group.micro_batches)), field, str(jax.numpy.dtype(x.dtype)), shape)
    return table


def _memory_table(memory: Mapping[str, ProgramMemory]) -> Table:
    table = Table("program", "arguments", "outputs", "temporaries", "peak", title="memory of one device")
    for name, used in memory.items():
        table.add_row(name, *map(_bytes, (used.arguments, used.outputs, used.temporaries, used.peak)))
    return table


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError
