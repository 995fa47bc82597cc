"""One point of a study: what one `virtue compile` is asked."""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MESH_AXES = ("data", "fsdp", "tensor")
FULL, LOW = EFFORTS = ("full", "low")


@dataclass(frozen=True)
class Point:
    """config: a run file, as `--config` takes it. batch: pairs a step, over all chips. mesh: {axis: size}, empty = the
    run file's. overrides: {dotted path in the configuration: value}. effort: the compiler's."""

    name: str
    config: str
    topology: str
    batch: int
    slices: int = 1
    mesh: tuple[tuple[str, int], ...] = ()
    overrides: tuple[tuple[str, Any], ...] = ()
    effort: str = FULL

    @property
    def chip(self) -> str:
        return self.topology.split(":")[0]

    @property
    def chips(self) -> int:
        """Of all slices."""
        return self.slices * chips_of(self.topology)

    @property
    def model(self) -> str:
        """The run file in short: "2b_scar:large"."""
        path, _, variant = self.config.partition(":")
        stem = Path(path).stem.removeprefix("virtue_")
        return f"{stem}:{variant}" if variant else stem

    @property
    def pod(self) -> str:
        """ "v5e 16x16", "2 x v5e 16x16"."""
        pod = self.topology.replace(":", " ")
        return f"{self.slices} x {pod}" if self.slices > 1 else pod

    @property
    def split(self) -> str:
        """The mesh in short: what splits weights or hidden units, or "data" where nothing does."""
        if not self.mesh:
            return "run file's"
        named = [f"{axis} {size}" for axis, size in self.mesh if axis != "data" and size != 1]
        return ", ".join(named) or "data"

    def inputs(self) -> dict:
        """What is asked, as plain values; the name is no part of it."""
        return {
            "config": self.config,
            "topology": self.topology,
            "slices": self.slices,
            "batch": self.batch,
            "mesh": dict(self.mesh),
            "overrides": {path: value for path, value in self.overrides},
            "effort": self.effort,
        }

    def identity(self) -> str:
        """Twelve digits that are equal where what is asked is equal."""
        return hashlib.sha256(json.dumps(self.inputs(), sort_keys=True).encode()).hexdigest()[:12]

    def file_name(self) -> str:
        """Of its report among others: readable, and no other point's."""
        told = f"{self.model} {self.pod} {self.split} {self.batch}"
        return f"{re.sub(r'[^A-Za-z0-9.]+', '-', told)}-{self.identity()[:6]}.json"

    def values(self) -> list[str]:
        """The flags that set what the run file does not hold so."""
        return [f"--config.{path}={_flag(value)}" for path, value in self.overrides]

    def arguments(self) -> list[str]:
        """Of `virtue compile`, all but where the report goes."""
        line = ["--config", self.config, "--topology", self.topology, "--batch", str(self.batch)]
        if self.slices > 1:
            line += ["--slices", str(self.slices)]
        if self.mesh:
            line += ["--mesh", ",".join(f"{axis}={size}" for axis, size in self.mesh)]
        if self.effort != FULL:
            line += ["--effort", self.effort]
        return line + self.values()


def chips_of(topology: str) -> int:
    """Of one slice: "v5e:16x16" has 256."""
    return math.prod(int(side) for side in topology.split(":")[1].split("x"))


def _flag(value: Any) -> str:
    """As ml_collections reads it: a list as a tuple's literal, a text as it stands."""
    return repr(tuple(value)) if isinstance(value, list | tuple) else str(value)
