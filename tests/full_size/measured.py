"""Seconds and peak memory of a stage of the comparison, from inside the process that runs it."""

import json
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Figures(dict):
    """{name: number}; `timed(name)` adds name_s (wall) and name_cpu_s (all threads)."""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self[f"{name}_s"] = round(time.perf_counter() - wall, 3)
        self[f"{name}_cpu_s"] = round(time.process_time() - cpu, 3)
        print(f"{name}: {self[f'{name}_s']} s, peak {peak_gib():.2f} GiB, load {os.getloadavg()[0]:.1f}", flush=True)

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(self, indent=2))


def peak_gib() -> float:
    """Largest resident memory of this process so far; mapped file pages count."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def resident_gib() -> float:
    """Resident memory of this process now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30
