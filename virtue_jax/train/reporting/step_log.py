"""What is told of the steps: device metrics, pace, packing, model FLOPs, memory; and what the data left out."""

import json
import resource
import sys
import time
from pathlib import Path

import jax

from virtue_jax.config import VirtueConfig
from virtue_jax.data.unreadable import Quarantine
from virtue_jax.parallel.processes import gather_bytes, is_leader
from virtue_jax.train.cost.flops import mfu, peak_flops, useful_flops
from virtue_jax.train.cost.work import batch_work
from virtue_jax.train.reporting.goodput import Goodput
from virtue_jax.train.reporting.metrics import MetricsLog, SilentLog
from virtue_jax.train.reporting.reports import Interval, packing_metrics
from virtue_jax.train.step.config import TrainConfig
from virtue_jax.train.step.setup import TrainSetup


class StepLog:
    """Gathers over all processes what happened since the last logged step, and has the leader write it.

    streams: this process's packing streams. step: the last step that is done already.
    """

    def __init__(
        self,
        config: TrainConfig,
        virtue: VirtueConfig,
        run: TrainSetup,
        out: MetricsLog | SilentLog,
        clock: Goodput,
        workdir: Path,
        *,
        streams: tuple[int, ...],
        step: int,
    ):
        self._config, self._virtue, self._run, self._out, self._clock = config, virtue, run, out, clock
        self._workdir = workdir
        self._interval = Interval(len(streams), config.data.streams)
        self._quarantine = Quarantine(workdir) if is_leader() else None
        self._quarantined: list[dict] = []
        self._step, self._time = step, time.perf_counter()
        self._wait, self._saves = clock.seconds("data_wait"), clock.seconds("saves")

    def say(self, line: str) -> None:
        self._out.say(line)

    def finished(self, step: int, batch) -> None:
        """Step `step` is done, of this process's `Step`."""
        flops = useful_flops(self._virtue, batch_work(batch.groups), self._run.state.trainable)
        self._interval.add(batch.report, towers=flops.towers, language_model=flops.language_model)
        self._quarantined += batch.report.quarantined
        self._out.advance(step)

    def write(self, step: int, position: dict, metrics: dict[str, float], stage_seconds: dict[str, float]) -> None:
        """Every process calls it at the same steps, each with its own data position."""
        steps, seconds, wait = self._pace(step)
        totals, slowest = self._interval.gather(wait, bad=sum(stream["bad"] for stream in position["streams"].values()))
        self.set_aside()
        values = metrics | {
            "seconds_per_step": seconds,
            "data_wait_seconds": wait,
            "slowest_data_wait_seconds": slowest.seconds,
            "slowest_data_wait_process": slowest.process,
            **stage_seconds,
            "examples_per_second": totals["pairs"][0] / (seconds * steps),
            "tokens_per_second": sum(totals["tokens"]) / (seconds * steps),
            **packing_metrics(totals, list(self._config.data.rows)),
            **_utilisation(totals, steps, seconds, self._run),
            **_memory(),
            "bad_rows": totals["bad"][0],
        }
        self._out.write(step, values)

    def set_aside(self) -> None:
        """Writes down what the data left out since the last call; every process calls it."""
        parts = gather_bytes(json.dumps(self._quarantined).encode())
        self._quarantined = []
        if self._quarantine is not None:
            for entry in self._quarantine.add([entry for part in parts for entry in json.loads(part)]):
                self._tell(entry, self._quarantine)

    def data_failed(self, error: Exception, pending=None) -> None:
        """This process's data ended with `error`, after the `Step` `pending` of a step that is not finished:
        writes down what it left out, without waiting for the others."""
        if pending is not None:
            self._quarantined += pending.report.quarantined
        quarantine = self._quarantine or Quarantine(self._workdir)
        for entry in quarantine.add([*self._quarantined, *getattr(error, "entries", ())]):
            self._tell(entry, quarantine)
        self._quarantined = []

    def close(self) -> None:
        self._out.close()

    def _tell(self, entry: dict, quarantine: Quarantine) -> None:
        self.say(f"left out: {entry['origin']}: {entry['error']} (all of them: {quarantine.path})")

    def _pace(self, step: int) -> tuple[int, float, float]:
        """(steps, seconds per step, of these waiting for data) since the last call; saves are no part of the pace."""
        now, wait, saves = time.perf_counter(), self._clock.seconds("data_wait"), self._clock.seconds("saves")
        steps = max(step - self._step, 1)
        seconds = max(now - self._time - (saves - self._saves), 1e-9) / steps
        waited = (wait - self._wait) / steps
        self._step, self._time, self._wait, self._saves = step, now, wait, saves
        return steps, seconds, waited


def _utilisation(totals: dict[str, list[float]], steps: int, seconds: float, run: TrainSetup) -> dict[str, float]:
    """Of a step, as the mean over `steps` of them, each `seconds` long."""
    towers, language_model = totals["towers"][0] / steps, totals["language_model"][0] / steps
    values = {
        "model_flops_towers": towers,
        "model_flops_language_model": language_model,
        "model_tflops_per_second": (towers + language_model) / seconds / 1e12,
    }
    peak = peak_flops(run.mesh.devices.flat[0].device_kind)
    if peak is not None:
        values["mfu"] = mfu(towers + language_model, seconds, peak * run.mesh.size)
    return values


def _memory() -> dict[str, float]:
    """GiB: of this host's process at most, and of its first device where the backend says it."""
    scale = 1 if sys.platform == "darwin" else 1024
    values = {"host_memory_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30}
    stats = jax.local_devices()[0].memory_stats() or {}
    for name, key in (("device_memory_gib", "bytes_in_use"), ("device_memory_peak_gib", "peak_bytes_in_use")):
        if key in stats:
            values[name] = stats[key] / 2**30
    return values
