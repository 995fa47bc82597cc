"""A program under measurement: a process that makes one training step whenever it is told to, and says how long.

It reads lines from stdin ("step", "stop") and answers each with one line of JSON on stdout; all else goes to stderr.
"""

import ctypes
import functools
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
WARM_UP = 2  # compilation; then the allocator has seen everything


def serve(step: Callable[[], float], facts: dict) -> None:
    """Warms up, then obeys stdin. `step` makes one whole training step and returns its loss."""
    started = time.perf_counter()
    losses = [step() for _ in range(WARM_UP)]
    facts = facts | {"warm_up_s": time.perf_counter() - started, "start_peak_gib": peak_gib(), "loss": losses[0]}
    reset_peak()
    _answer(facts)
    for line in sys.stdin:
        if line.strip() == "stop":
            _answer({"peak_gib": peak_gib()})
            return
        wall, cpu = time.perf_counter(), time.process_time()
        loss = step()
        _answer({"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "loss": loss})


def _answer(values: dict) -> None:
    print(json.dumps(values), flush=True)


def reset_peak() -> None:
    """From here on `peak_gib` tells of what comes now (Linux; elsewhere it keeps telling of the whole process)."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what compilation has freed
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        print(f"the peak includes start-up: {error}", file=sys.stderr)


def peak_gib() -> float:
    """Largest resident memory since `reset_peak`, or since the start."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def environment(threads: int, root: Path = ROOT) -> dict[str, str]:
    """Of every program: the same number of threads, no GPU, no network; modules of the checkout `root`."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    paths = os.pathsep.join([str(root), str(root / "tests")])
    # No OMP_WAIT_POLICY: PASSIVE makes PyTorch's step 1.6 times as long, and its threads sleep between turns anyway.
    quiet = {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    return os.environ | limits | quiet | {"PYTHONPATH": paths}


def _keep_to(threads: int) -> None:
    """XLA takes as many threads as it may have cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


class Worker:
    """The other end: starts `python -m module arguments` and, once that is ready (`wait`), tells it what to do."""

    def __init__(self, name: str, module: str, arguments: list, log: Path, threads: int, root: Path = ROOT):
        self.name, self.log = name, log
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            env=environment(threads, root),
            cwd=root,
            preexec_fn=functools.partial(_keep_to, threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(log, "w"),  # noqa: SIM115
            text=True,
        )
        self.facts: dict = {}

    def wait(self) -> None:
        """Until it has warmed up; `facts` are then known."""
        self.facts = self._read()

    def step(self) -> dict:
        return self._ask("step")

    def stop(self) -> dict:
        """Its last figures; the process has ended afterwards."""
        figures = self._ask("stop")
        self.process.communicate()
        return figures

    def _ask(self, what: str) -> dict:
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            tail = "\n".join(self.log.read_text().splitlines()[-20:])
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}:\n{tail}")
        return json.loads(line)
