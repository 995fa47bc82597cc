"""What the quickstart's fresh run spends before its first step and in its first save, here and in another checkout.

    python tests/benchmarks/first_minutes.py [--before DIR] [--repeats N] [--report FILE.json]

Every run is a process of its own in an empty folder, without a persistent compilation cache: `virtue train` of the
quickstart's first run, ended after two steps and one save. The checkouts take turns. Prints, for each part of a run's
account of its time, wall and CPU seconds (medians), and the ratio after / before within a turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Older checkouts count starting weights as "restore".
PARTS = {"weights and restore": ("weights", "restore"), "compile": ("compile",), "saves": ("saves",), "init": ("init",)}
WHOLE = "whole process"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="another checkout, to compare with")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        _train(*map(Path, arguments.child))
        return
    checkouts = {"before": arguments.before.resolve()} if arguments.before else {}
    checkouts["after"] = ROOT
    with tempfile.TemporaryDirectory() as folder:
        scenes = Path(folder) / "scenes"
        _make_scenes(scenes)
        turns = [
            {name: _run(root, scenes, Path(folder) / f"{name}_{turn}") for name, root in checkouts.items()}
            for turn in range(arguments.repeats)
        ]
    print(_table(turns))
    if arguments.report:
        arguments.report.write_text(json.dumps(turns, indent=1) + "\n")


def _make_scenes(folder: Path) -> None:
    options = "--width 96 96 --height 96 96 --kinds 8 --colours 8 --textures 1 --backgrounds 8 --frame-relations"
    counts = "--seed 1 --train 1500 --eval 0 --objects 1 1"
    _virtue(ROOT, ["scenes", "--out", str(folder), *options.split(), *counts.split()])


def _virtue(root: Path, arguments: list[str]) -> None:
    program = [sys.executable, "-c", "from virtue_jax.cli.main import main; main()", *arguments]
    subprocess.run(program, env=_environment(root), cwd=root, check=True, stdout=subprocess.DEVNULL)


def _environment(root: Path) -> dict[str, str]:
    cold = {"JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    return {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"} | cold


def _run(root: Path, scenes: Path, workdir: Path) -> dict[str, dict[str, float]]:
    """{part: {"wall_s", "cpu_s"}} of a fresh run of the checkout `root`."""
    program = [sys.executable, __file__, "--child", str(scenes), str(workdir)]
    begin = time.perf_counter()
    subprocess.run(program, env=_environment(root), cwd=root, check=True, stdout=subprocess.DEVNULL)
    spent = json.loads((workdir / "spent.json").read_text())
    spent[WHOLE]["wall_s"] = time.perf_counter() - begin
    return spent


def _train(scenes: Path, workdir: Path) -> None:
    """In the process under measurement: `virtue train`, whose account is kept in CPU seconds as well."""
    from virtue_jax.cli.main import main as virtue
    from virtue_jax.train.reporting.goodput import Goodput

    spent: dict[str, dict[str, float]] = {}
    inside = [[0.0, 0.0]]
    measure = Goodput.measure

    @contextmanager
    def measured(self, part: str):
        begin = time.perf_counter(), time.process_time()
        inside.append([0.0, 0.0])
        with measure(self, part):
            yield
        took = [time.perf_counter() - begin[0], time.process_time() - begin[1]]
        within = inside.pop()
        for i, clock in enumerate(("wall_s", "cpu_s")):
            inside[-1][i] += took[i]
            counted = spent.setdefault(part, {"wall_s": 0.0, "cpu_s": 0.0})
            counted[clock] += took[i] - within[i]

    Goodput.measure = measured
    values = {"data.sources.scenes.path": scenes, "steps": 2, "optimizer.warmup_steps": 1}
    changes = [f"--config.{name}={value}" for name, value in values.items()]
    virtue(["train", "--config", "configs/quickstart.py:recognise", "--workdir", str(workdir), *changes])
    grouped = {
        name: {clock: sum(spent[part][clock] for part in parts if part in spent) for clock in ("wall_s", "cpu_s")}
        for name, parts in PARTS.items()
    }
    (workdir / "spent.json").write_text(json.dumps(grouped | {WHOLE: {"cpu_s": time.process_time()}}))


def _table(turns: list[dict]) -> str:
    names = list(turns[0])
    head = ["part", *(f"{name}, {clock} s" for name in names for clock in ("wall", "CPU"))]
    head += ["after / before, wall", "CPU"] if len(names) == 2 else []
    rows = [head, ["---"] * len(head)]
    for part in (*PARTS, WHOLE):
        values = {(name, c): [turn[name][part][c] for turn in turns] for name in names for c in ("wall_s", "cpu_s")}
        row = [part, *(f"{statistics.median(seconds):.1f}" for seconds in values.values())]
        if len(names) == 2:
            for clock in ("wall_s", "cpu_s"):
                pairs = zip(values["after", clock], values["before", clock], strict=True)
                row.append(f"{statistics.median(after / before for after, before in pairs):.2f}")
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
