"""Where a run's numbers go: a progress bar and lines on the console, metrics.jsonl, TensorBoard."""

import json
import math
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

SHOWN = ("loss", "accuracy", "positive_similarity", "negative_similarity", "gradient_norm")


class MetricsLog:
    """Appends one record per logged step to `workdir/metrics.jsonl` and TensorBoard events; prints a line of it.

    A resumed run appends; records of steps after the restored one, which that run will repeat, are cut off first.
    """

    def __init__(self, workdir: Path, *, start: int, steps: int, console: Console | None = None):
        self.console = console or Console()
        self._path = workdir / "metrics.jsonl"
        _cut_after(self._path, start)
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1 if start else None)
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=self.console, transient=True)
        self._task = self._progress.add_task("training", total=steps, completed=start)
        self._progress.start()

    def advance(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Raises:
        FloatingPointError: a loss that is not finite, after it is written down.
        """
        record = {"step": step, "time": time.time(), **values}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        shown = "  ".join(f"{name} {values[name]:.4f}" for name in SHOWN if name in values)
        pace = f"{values.get('examples_per_second', 0):.1f} examples/s"
        self.console.print(f"step {step:6d}  {shown}  {pace}", soft_wrap=True)
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(
                f"loss is {values['loss']} at step {step}; the last checkpoint before it is kept. "
                "Lower the learning rate or compute in float32"
            )

    def close(self) -> None:
        self._progress.stop()
        self._file.close()
        self._board.close()


def _cut_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the half line of a killed run
            continue
        if record["step"] <= step:
            kept.append(line)
    path.write_text("".join(line + "\n" for line in kept))
