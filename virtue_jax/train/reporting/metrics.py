"""Where a run's numbers go: a progress bar and lines on the console, metrics.jsonl, TensorBoard."""

import contextlib
import json
import math
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from virtue_jax.atomic_files import replace_text
from virtue_jax.data.unreadable import read_whole_lines
from virtue_jax.disk import told_of_the_disk
from virtue_jax.train.reporting.tensorboard import Board

FILE = "metrics.jsonl"
SHOWN = {
    "loss": "{:.4f}",
    "accuracy": "{:.3f}",
    "positive_similarity": "{:.3f}",
    "negative_similarity": "{:.3f}",
    "gradient_norm": "{:.3g}",
    "seconds_per_step": "{:.3g}",
    "examples_per_second": "{:.1f}",
    "row_efficiency": "{:.3f}",
    "mfu": "{:.3f}",
    "bad_rows": "{:.0f}",
    "skipped": "{:.0f}",
}
_QUIET_AT_ZERO = ("bad_rows", "skipped")


class MetricsLog:
    """Appends one record per logged step to `workdir/metrics.jsonl` and TensorBoard events; prints a line of it.

    A resumed run appends; records of steps after the restored one, which that run will repeat, are cut off first.
    Numbers that are not finite are null in the file.
    """

    def __init__(self, workdir: Path, *, start: int, steps: int, console: Console | None = None):
        self.console = console or Console()
        self._path, self._steps = workdir / FILE, steps
        _cut_after(self._path, start)
        self._file = self._path.open("a")
        self._board = Board(workdir / "tensorboard", start)
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=self.console, transient=True)
        self._task = self._progress.add_task("training", total=steps, completed=start)
        self._progress.start()

    def advance(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def say(self, line: str) -> None:
        """A line above the progress bar."""
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends a record of `values` to the file, adds it to the board and prints a line.

        Raises:
            OSError: the file cannot be written.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with told_of_the_disk("the metrics", self._path.parent):
            self._file.write(json.dumps({"step": step, "time": time.time(), **finite}) + "\n")
            self._file.flush()
            self._board.write(step, values)
        shown = [
            f"{name} {form.format(values[name])}"
            for name, form in SHOWN.items()
            if name in values and (values[name] or name not in _QUIET_AT_ZERO)
        ]
        self.say(f"step {step:{len(str(self._steps))}d}/{self._steps}  " + "  ".join(shown))

    def close(self) -> None:
        self._progress.stop()
        with contextlib.suppress(OSError):  # on a full disk: what ended the run says so
            self._file.close()
        with contextlib.suppress(OSError):
            self._board.close()


class SilentLog:
    """A `MetricsLog` that keeps quiet: for processes other than the leader."""

    def advance(self, step: int) -> None:
        """The leader has a progress bar."""

    def say(self, line: str) -> None:
        """The leader prints."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """The leader writes."""

    def close(self) -> None:
        """Nothing is open."""


def _cut_after(path: Path, step: int) -> None:
    if path.exists():
        kept = [record for record in read_whole_lines(path) if record["step"] <= step]
        replace_text(path, "".join(json.dumps(record) + "\n" for record in kept))
