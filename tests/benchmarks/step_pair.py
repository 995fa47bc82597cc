"""The training step of this checkout against that of another one, in turns, in one run on this machine.

    python tests/benchmarks/step_pair.py --before DIR [--repeats N] [--full] [--threads N]

Each is `benchmarks.our_step` of its own checkout in a process of its own, on one model and batch, warmed up; then they
take turns, A B A B. Prints the loss of each and the ratios after / before, within a turn, of wall and CPU seconds.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.worker import Worker, environment  # noqa: E402

CLOCKS = {"wall_s": "wall", "cpu_s": "CPU"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--full", action="store_true", help="the benchmark's whole model, a quarter of it otherwise")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    checkouts = {"before": arguments.before.resolve(), "after": ROOT}
    with tempfile.TemporaryDirectory() as folder:
        workers = _start(checkouts, Path(folder), arguments)
        turns = [{name: worker.step() for name, worker in workers.items()} for _ in range(arguments.repeats)]
        for worker in workers.values():
            worker.stop()
    for name, worker in workers.items():
        print(f"{name}: {checkouts[name]}, loss of the first step {worker.facts['loss']!r}")
    for clock, what in CLOCKS.items():
        print(_line(what, *([turn[name][clock] for turn in turns] for name in checkouts)))


def _start(checkouts: dict[str, Path], folder: Path, arguments) -> dict[str, Worker]:
    """Warmed up; the model and the batch are written by the older code, which both can read."""
    case, threads = folder / "case", arguments.threads
    command = [sys.executable, "-m", "benchmarks.case", "--out", str(case), *["--quick"] * (not arguments.full)]
    environ = environment(threads, checkouts["before"])
    subprocess.run(command, env=environ, cwd=checkouts["before"], check=True, stdout=subprocess.DEVNULL)
    workers = {}
    for name, root in checkouts.items():
        log = folder / f"{name}.log"
        workers[name] = Worker(name, "benchmarks.our_step", ["--case", case], log, threads, root)
        workers[name].wait()
    return workers


def _line(what: str, before: list[float], after: list[float]) -> str:
    ratios = sorted(b / a for a, b in zip(before, after, strict=True))
    return (
        f"{what} seconds of a step: before {statistics.median(before):.3f}, after {statistics.median(after):.3f}; "
        f"after / before {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}) in {len(ratios)} turns"
    )


if __name__ == "__main__":
    main()
