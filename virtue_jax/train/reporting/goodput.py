"""Where a run's time went, over all its starts: what trained, and what starting, saving, waiting and repeating took."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

from virtue_jax.atomic_files import replace_text

FILE = "goodput.json"
# weights: of the model that the run starts from, read or drawn. restore: of a checkpoint.
PARTS = ("init", "weights", "restore", "compile", "data_wait", "steps", "saves")


class Goodput:
    """`workdir/goodput.json`: {"starts": [{"from_step", "last_step", "seconds": {part: seconds}, "wall"}, ...]}.

    A start that is killed keeps what it last wrote (`write` is called at logged steps and saves). Steps that one start
    did and the next did again were lost; their time counts as such at the earlier start's mean seconds per step.
    """

    def __init__(self, workdir: Path):
        self._path = workdir / FILE
        self._begin = time.time()
        self._inside: list[float] = []
        self._starts = _read(self._path)
        self._now = {"from_step": 0, "last_step": 0, "seconds": dict.fromkeys(PARTS, 0.0), "wall": 0.0}

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Counts the block as `part`; a block inside of it counts for its own part only."""
        begin = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - begin
            self._now["seconds"][part] += spent - self._inside.pop()
            if self._inside:
                self._inside[-1] += spent

    def seconds(self, part: str) -> float:
        """Of this start, so far."""
        return self._now["seconds"][part]

    def begin_at(self, step: int) -> None:
        self._now |= {"from_step": step, "last_step": step}

    def write(self, step: int) -> None:
        self._now |= {"last_step": step, "wall": time.time() - self._begin}
        with suppress(OSError):  # an account is no reason to fail; a checkpoint will say it
            replace_text(self._path, json.dumps({"starts": [*self._starts, self._now]}, indent=1) + "\n")

    def totals(self) -> dict[str, float]:
        """Seconds by part over all starts; `lost`: of steps done again; `other`: the rest of the wall time;
        `goodput`: share of the wall time that went into steps that stayed; `repeated_steps`, `starts`."""
        starts = [*self._starts, self._now]
        out = {part: sum(start["seconds"].get(part, 0.0) for start in starts) for part in PARTS}
        repeated, lost = 0, 0.0
        for before, after in pairwise(starts):
            again = max(before["last_step"] - after["from_step"], 0)
            done = max(before["last_step"] - before["from_step"], 1)
            repeated += again
            lost += min(again / done, 1.0) * before["seconds"]["steps"]
        wall = sum(start["wall"] for start in starts)
        out["steps"] -= lost
        other = max(wall - lost - sum(out[part] for part in PARTS), 0.0)
        out |= {"lost": lost, "other": other, "wall": wall}
        return out | {"goodput": out["steps"] / max(wall, 1e-9), "repeated_steps": repeated, "starts": len(starts)}

    def tell(self, console: Console) -> None:
        """Prints where the time went."""
        totals = self.totals()
        table = Table("part", "seconds", "share", title="where the time went")
        for part in (*PARTS, "lost", "other"):
            table.add_row(part, f"{totals[part]:.1f}", f"{100 * totals[part] / max(totals['wall'], 1e-9):.1f} %")
        console.print(table)
        console.print(
            f"goodput {100 * totals['goodput']:.1f} % of {totals['wall']:.0f} s in {totals['starts']} starts; "
            f"{totals['repeated_steps']} steps repeated",
            highlight=False,
        )


def _read(path: Path) -> list[dict]:
    try:
        return json.loads(path.read_text())["starts"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # a damaged account is no reason not to train
        return []
