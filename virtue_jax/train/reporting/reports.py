"""What the packing did since the last logged step, over all processes, as numbers for the log."""

import json

from virtue_jax.parallel.processes import gather_bytes


class Interval:
    """Sums of `PackReport`s of this process, until they are gathered.

    streams: how many packing streams this process has, of how many; two processes may have the same one.
    """

    def __init__(self, streams: int, of: int):
        self._streams, self._of = streams, of
        self._sums: dict[str, list[int]] = {}
        self._waiting = 0

    def add(self, report) -> None:
        numbers = {
            "pairs": [report.pairs],
            "tokens": report.tokens,
            "slots": report.slots,
            "patches": report.patches,
            "patch_capacity": report.patch_capacity,
        }
        for name, values in numbers.items():
            old = self._sums.get(name, [0] * len(values))
            self._sums[name] = [a + int(b) for a, b in zip(old, values, strict=True)]
        self._waiting = report.waiting

    def gather(self, **more: float) -> dict[str, list[float]]:
        """{name: sums over all streams} since the last call; every process calls it.

        more: further numbers of this process, summed alike.
        """
        sums = self._sums | {"waiting": [self._waiting]} | {name: [value] for name, value in more.items()}
        mine = {"sums": sums, "streams": self._streams}
        parts = [json.loads(part) for part in gather_bytes(json.dumps(mine).encode())]
        # A stream that two processes have is there twice.
        share = self._of / sum(part["streams"] for part in parts)
        total = {
            name: [share * sum(values) for values in zip(*(part["sums"][name] for part in parts), strict=True)]
            for name in sums
        }
        self._sums = {}
        return total


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
