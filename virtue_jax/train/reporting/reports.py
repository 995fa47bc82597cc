"""What the packing did since the last logged step, over all processes, as numbers for the log."""

import json
from typing import NamedTuple

from virtue_jax.parallel.processes import gather_bytes


class Slowest(NamedTuple):
    """The longest wait of any process: seconds, and that process's number."""

    seconds: float
    process: int


class Interval:
    """Sums of `PackReport`s of this process, until they are gathered.

    streams: how many packing streams this process has, of how many; two processes may have the same one.
    """

    def __init__(self, streams: int, of: int):
        self._streams, self._of = streams, of
        self._sums: dict[str, list[float]] = {}
        self._waiting = 0

    def add(self, report, **more: float) -> None:
        """A step's `PackReport`; more: further numbers of this process's part of it."""
        numbers = {
            "pairs": [report.pairs],
            "tokens": report.tokens,
            "slots": report.slots,
            "patches": report.patches,
            "patch_capacity": report.patch_capacity,
            **{name: [value] for name, value in more.items()},
        }
        for name, values in numbers.items():
            old = self._sums.get(name, [0] * len(values))
            self._sums[name] = [a + b for a, b in zip(old, values, strict=True)]
        self._waiting = report.waiting

    def gather(self, wait: float = 0.0, **more: float) -> tuple[dict[str, list[float]], Slowest]:
        """{name: sums over all streams} since the last call, and who waited longest; every process calls it.

        wait: seconds that this process waited for its data. more: further numbers of it, summed as those of the steps.
        """
        sums = self._sums | {"waiting": [self._waiting]} | {name: [value] for name, value in more.items()}
        sums = {name: [float(value) for value in values] for name, values in sums.items()}
        mine = {"sums": sums, "streams": self._streams, "wait": wait}
        parts = [json.loads(part) for part in gather_bytes(json.dumps(mine).encode())]
        # A stream that two processes have is there twice.
        share = self._of / sum(part["streams"] for part in parts)
        total = {
            name: [share * sum(values) for values in zip(*(part["sums"][name] for part in parts), strict=True)]
            for name in sums
        }
        self._sums = {}
        seconds = [part["wait"] for part in parts]
        return total, Slowest(max(seconds), seconds.index(max(seconds)))


def packing_metrics(sums: dict[str, list[float]], groups: list[str]) -> dict[str, float]:
    """Row efficiency (real tokens / slots) over all row groups and of each, and the same of vision rows' patches."""
    values = {
        "row_efficiency": sum(sums["tokens"]) / max(sum(sums["slots"]), 1),
        "waiting": sums["waiting"][0],
    }
    if sum(sums["patch_capacity"]):
        values["patch_efficiency"] = sum(sums["patches"]) / sum(sums["patch_capacity"])
    for i, name in enumerate(groups):
        values[f"row_efficiency/{name}"] = sums["tokens"][i] / max(sums["slots"][i], 1)
    return values
