"""Compiles points in processes of their own: several at once, within a limit of memory, each content once."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from virtue_jax.aot.study.compile_job import Busy, CompileJob
from virtue_jax.aot.study.entry import Entry, read_entry
from virtue_jax.aot.study.point import Point

MARGIN = 1.1  # of a measured peak, for the next point of the same run file


@dataclass(frozen=True)
class Limits:
    """workers: compilations at a time. memory_gib: of all of them together. point_gib: of one, until it is known."""

    workers: int = 1
    memory_gib: float = 16.0
    point_gib: float = 8.0
    poll: float = 0.1  # seconds between two looks


class Runner:
    """cache: folder of {content key}.json. command: the program and its first arguments; a point's arguments and
    `--json FILE` follow. say: told a line when something happens."""

    def __init__(self, cache: Path, command: Sequence[str], limits: Limits, say: Callable[[str], None]):
        if limits.point_gib > limits.memory_gib:
            raise ValueError(
                f"--memory-gib {limits.memory_gib:g}: a point is taken to need {limits.point_gib:g} GiB (--point-gib); "
                "give at least as much"
            )
        self._cache, self._command, self._limits, self._say = cache, list(command), limits, say
        self._peaks: dict[str, float] = {}
        self._took: dict[str, list[float]] = {}  # by effort
        self._done, self._all = 0, 0
        self._first: Mapping[str, Point] = {}
        self._running: dict[str, CompileJob] = {}
        self._told_busy: set[str] = set()

    def run(self, keys: Mapping[Point, str]) -> dict[Point, Entry]:
        """The entry of every point, compiled where the cache has none. Points with one key are compiled once.

        Whatever ends it early (Ctrl-C) ends the running compilations; finished ones are in the cache.
        """
        self._cache.mkdir(parents=True, exist_ok=True)
        first = self._first = {key: point for point, key in reversed(keys.items())}
        entries: dict[str, Entry] = {}
        self._all = len(first)
        for key in first:
            if (entry := read_entry(self._path(key))) is not None and entry.report is not None:
                self._learn(first[key], entry)
                entries[key], self._done = entry, self._done + 1
        if entries:
            self._say(f"{len(entries)} of {self._all} points were compiled before")
        waiting = [key for point, key in keys.items() if first[key] is point and key not in entries]
        try:
            while waiting or self._running:
                self._start(waiting, first, entries)
                self._reap(first, entries, waiting)
                if waiting or self._running:
                    time.sleep(self._limits.poll)
        finally:
            for job in self._running.values():
                job.kill()
            self._running.clear()
        return {point: replace(entries[key], inputs=point.inputs()) for point, key in keys.items()}

    def _start(self, waiting: list[str], first: Mapping[str, Point], entries: dict[str, Entry]) -> None:
        """As many as the limits let in; one that never will be is refused."""
        for key in list(waiting):
            point, need = first[key], self._need(first[key])
            if need > self._limits.memory_gib:
                waiting.remove(key)
                self._finish(point, key, self._refused(point, key, need), entries, waiting)
                continue
            used = sum(max(self._need(job.point), job.resident_gib()) for job in self._running.values())
            if len(self._running) >= self._limits.workers or used + need > self._limits.memory_gib:
                return
            try:
                job = CompileJob(point, key, self._cache, self._command)
            except Busy:
                if key not in self._told_busy:
                    self._say(f"{point.name}: another process compiles it; waiting for that")
                self._told_busy.add(key)
                continue
            waiting.remove(key)
            if (entry := read_entry(self._path(key))) is not None and entry.report is not None:
                job.close()  # by a process that was waited for, or that was faster
                self._finish(point, key, entry, entries, waiting)
                continue
            job.start()
            self._running[key] = job
            self._say(f"{point.name}: compiling, about {need:.1f} GiB; {len(self._running)} at a time")

    def _reap(self, first: Mapping[str, Point], entries: dict[str, Entry], waiting: list[str]) -> None:
        for key, job in list(self._running.items()):
            entry = job.result()
            if entry is None:
                continue
            del self._running[key]
            entry.write(self._path(key))
            job.close()
            self._finish(first[key], key, entry, entries, waiting)

    def _finish(self, point: Point, key: str, entry: Entry, entries: dict[str, Entry], waiting: list[str]) -> None:
        entries[key], self._done = entry, self._done + 1
        self._learn(point, entry)
        took = f", {entry.seconds:.0f} s, {entry.peak_gib:.1f} GiB" if entry.seconds else ""
        self._say(f"[{self._done}/{self._all}] {point.name}: {outcome(entry)}{took}{self._left(waiting)}")

    def _learn(self, point: Point, entry: Entry) -> None:
        if entry.peak_gib:
            self._peaks[point.config] = max(entry.peak_gib, self._peaks.get(point.config, 0.0))
        if entry.seconds and entry.report is not None:
            self._took.setdefault(point.effort, []).append(entry.seconds)

    def _need(self, point: Point) -> float:
        """GiB: of the dearest finished point of the run file, or else no less than of any."""
        peak, limit = self._peaks.get(point.config), self._limits.memory_gib
        if peak is not None:
            return MARGIN * peak if peak > limit else min(MARGIN * peak, limit)
        return max([self._limits.point_gib, *(MARGIN * peak for peak in self._peaks.values())])

    def _left(self, waiting: list[str]) -> str:
        """Time left, by the means of what finished at the same effort."""
        if not self._took or not (waiting or self._running):
            return ""
        ahead = sum(self._mean(self._first[key]) for key in waiting)
        now = sum(
            max(self._mean(job.point) - job.seconds, 0.1 * self._mean(job.point)) for job in self._running.values()
        )
        # As many at a time as ran beside the one that just ended.
        return f"; about {_duration((ahead + now) / (len(self._running) + 1))} left"

    def _mean(self, point: Point) -> float:
        """Seconds: of any effort where none finished at the point's."""
        took = self._took.get(point.effort) or [each for took in self._took.values() for each in took]
        return sum(took) / len(took)

    def _refused(self, point: Point, key: str, need: float) -> Entry:
        limit = self._limits.memory_gib
        return Entry(
            point.inputs(), key, None, f"not compiled: it needs about {need:.1f} GiB, --memory-gib is {limit:g}"
        )

    def _path(self, key: str) -> Path:
        return self._cache / f"{key}.json"


def outcome(entry: Entry) -> str:
    """In a line."""
    if entry.report is None:
        return f"FAILED: {entry.error}"
    memory = entry.report["memory"]
    peak = "more than all" if memory["peak"] is None else f"{memory['peak'] / 2**30:.1f}"
    used = f"{peak} of {memory['size'] / 2**30:.1f} GiB"
    if not entry.report["fits"]:
        return f"does not fit ({used})"
    bounds = sorted(bound["mfu"] for bound in entry.report["prediction"].values() if bound)
    mfu = f"{bounds[0]:.2f}..{bounds[-1]:.2f}" if len(bounds) > 1 else f"{bounds[0]:.2f} by the roofline only"
    return f"fits, {used}, MFU {mfu}"


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
