"""`python study_run.py STUDY CACHE WORKERS`: a study compiled by `fake_compile.py`, in a process that can be killed."""

import sys
from pathlib import Path

from virtue_jax.aot.study.entry import Entry
from virtue_jax.aot.study.point import Point
from virtue_jax.aot.study.runner import Limits, Runner
from virtue_jax.aot.study.study_file import read_study

FAKE = [sys.executable, str(Path(__file__).parent / "fake_compile.py")]
QUICK = Limits(workers=2, memory_gib=4.0, point_gib=1.0, poll=0.01)


def run_points(points, cache: Path, limits: Limits = QUICK, say=lambda line: None) -> dict[Point, Entry]:
    """Keys that differ where what is asked differs."""
    return Runner(cache, FAKE, limits, say).run({point: point.identity() for point in points})


if __name__ == "__main__":
    study, cache, workers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    run_points(read_study(study).points, cache, Limits(workers, 64.0, 1.0, 0.01), lambda line: print(line, flush=True))
