"""The loop over steps: starts one, then looks at the one before, so that the devices never run dry."""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

from virtue_jax.parallel.mesh import put_rows
from virtue_jax.parallel.processes import Agreement, is_alone, is_leader
from virtue_jax.train.evaluations import Evaluations
from virtue_jax.train.reporting.goodput import Goodput
from virtue_jax.train.reporting.step_log import StepLog
from virtue_jax.train.reporting.step_trace import StepTrace
from virtue_jax.train.step.config import TrainConfig
from virtue_jax.train.step.programs import Compilations, Stages
from virtue_jax.train.step.stages import TrainState
from virtue_jax.train.survival.checkpoints import RunCheckpoints
from virtue_jax.train.survival.interruption import Interrupted, StopSignal
from virtue_jax.train.survival.nonfinite import NonFinite
from virtue_jax.train.survival.watchdog import LONG, Watchdog


class Started(NamedTuple):
    """A step that was dispatched: its batch on the host, its metrics on the devices, the data position after it."""

    step: int
    batch: Any
    metrics: Mapping[str, jax.Array]
    position: dict


@dataclass
class StepLoop:
    """Runs steps until the last; what a run does beside computing hangs on it.

    frozen: {path: array}. loader: an iterator of this process's `Step`s, of packing streams `streams`. seen:
    called with (step, Step) when a step is finished, on every process and before a checkpoint has it.
    """

    config: TrainConfig
    stages: Stages
    frozen: Mapping[str, jax.Array]
    loader: Any
    streams: tuple[int, ...]
    checkpoints: RunCheckpoints
    log: StepLog
    clock: Goodput
    stop: StopSignal
    nonfinite: NonFinite
    watchdog: Watchdog
    evaluations: Evaluations
    workdir: Path
    seen: Callable[[int, Any], None] | None = None
    done: int = 0  # the last step that is finished

    def run(self, state: TrainState) -> TrainState:
        """Raises:
        Interrupted: told to stop; a checkpoint is written.
        FloatingPointError: a step that is not finite, as `NonFinite` has it. OSError: a checkpoint cannot be written.
        RuntimeError: something was compiled again after the first step.
        """
        self._state, self._pending, self._settled, self._metrics = state, None, None, {}
        self.done = int(jax.device_get(state.step))
        self._first = self.done + 1
        self._agreement, self._asked = Agreement(2), False
        self._saved_at, self._saved_step = time.monotonic(), self.done
        self.clock.begin_at(self.done)
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.transfer_guard("disallow"))
            self._trace = StepTrace(self.config.profile_steps, self.workdir / "profile")
            stack.callback(self._trace.close)
            self._compiled = Compilations()
            stack.callback(self._compiled.close)
            for step in range(self._first, self.config.steps + 1):
                self._one(step)
        return self._state

    def _one(self, step: int) -> None:
        batch = self._next()
        self._trace.before(step)
        evaluates = bool(self.evaluations.due(step))
        logs = step in (1, self.config.steps) or step % self.config.log_every == 0 or evaluates
        saves = step == self.config.steps or step % self.config.checkpoint_every == 0
        with self.clock.measure("steps"):
            if logs:
                self._settle()  # so that the stages' times are of this step alone
            started, stage_seconds = self._dispatch(step, batch, logs)
            stop, due = self._agree(step)
            self._settle()
            self._pending = started
            if logs or saves or stop or due or self._trace.ends_with(step):
                self._settle()
        if self._trace.after(step):
            self.log.say(f"profiler trace of steps {self.config.profile_steps} in {self.workdir / 'profile'}")
        if logs:
            values = self._metrics | {"skipped": float(self.nonfinite.skipped)}
            self.log.write(step, started.position, values, stage_seconds)
            self._write_clock(step)
        if evaluates and not stop:
            stop = self._evaluate(step)
        if saves or stop or due:
            self._save(started)
        if stop:
            self._end(step)

    def _next(self):
        """The next step's batch; where one process is told to stop, it need not wait for that."""
        with self.clock.measure("data_wait"):
            try:
                batch = self._await_batch()
            except Interrupted:
                batch = None
            except Exception as error:
                if is_alone():
                    self._settle()
                self.log.data_failed(error, self._pending and self._pending.batch)
                # The data's workers may be gone by the same signal (Ctrl-C reaches all of a terminal's processes).
                if not self.stop.received or not is_alone():
                    raise
                batch = None
        if batch is None:
            self._stop_here()
        return batch

    def _await_batch(self):
        """None or `Interrupted`: told to stop, with nobody to agree with."""
        try:
            self.stop.deferred = not is_alone()
            batch = None if is_alone() and self.stop.received else next(self.loader)
            return None if is_alone() and self.stop.received else batch
        finally:
            self.stop.deferred = True

    def _stop_here(self) -> None:
        """Saves the last step that was started, if this start did any, and raises `Interrupted`."""
        self._settle()
        self.stop.deferred = True
        if self._settled is not None:
            self._save(self._settled)
        self._end(self.done)

    def _dispatch(self, step: int, batch, timed: bool) -> tuple[Started, dict[str, float]]:
        compiled, seconds = self._compiled.count, {}
        position = self.loader.get_state()
        with jax.transfer_guard("allow"):  # the one transfer of a step to the devices
            groups = put_rows(batch.groups, self.stages.run.mesh, self.streams, self.config.data.streams)
        if timed:
            self._state, metrics, seconds = self.stages.timed(self._state, self.frozen, groups)
        else:
            self._state, metrics = self.stages(self._state, self.frozen, groups)
        if step > self._first and self._compiled.count > compiled:
            names = ", ".join(self._compiled.names[compiled:])
            raise RuntimeError(f"step {step} compiled {names} again; its arrays must be those of the first step")
        return Started(step, batch, metrics, position), seconds

    def _agree(self, step: int) -> tuple[bool, bool]:
        """(stop now, save now), the same on all processes: by anybody's signal, and by the leader's clock."""
        minutes = self.config.checkpoint_minutes
        due = bool(minutes) and is_leader() and not self._asked and time.monotonic() - self._saved_at > 60 * minutes
        self._agreement.offer(int(bool(self.stop.received)), int(due))
        self._asked = self._asked or due
        stop, save = self._agreement.result()
        asked_at = step if is_alone() else step - 1
        return bool(stop), bool(save) and asked_at > self._saved_step

    def _settle(self) -> None:
        """Waits for the step that is not looked at yet, and looks at it."""
        if self._pending is None:
            return
        done, self._pending = self._pending, None
        self._metrics = {name: float(value) for name, value in jax.device_get(dict(done.metrics)).items()}
        finite = self._metrics.pop("finite")
        self.done = done.step
        self.watchdog.beat()
        self.log.finished(done.step, done.batch)
        if not finite:
            self.log.say(self.nonfinite.meet(done.step, done.batch, self._metrics, self._state))
        if self.seen is not None:
            self.seen(done.step, done.batch)
        self._settled = done._replace(batch=None, metrics={})  # a save needs no more; a batch is large
        self.checkpoints.check()

    def _evaluate(self, step: int) -> bool:
        """Before the save, so that a checkpoint has the evaluations of its step. Whether it was told to stop, which
        leaves them to the next start."""
        try:
            with self.clock.measure("evaluation"), jax.transfer_guard("allow"):
                values = self.evaluations.run(step, self._state.trainable)
        except Interrupted:
            return True
        self.log.evaluated(step, values)
        self.watchdog.beat()
        return False

    def _save(self, done: Started) -> None:
        self.watchdog.beat("a save", LONG)
        with self.clock.measure("saves"):
            self.log.set_aside()
            self.checkpoints.save(self._state, done.position, step=done.step)
        self._saved_at, self._saved_step, self._asked = time.monotonic(), done.step, False
        self._write_clock(done.step)
        self.watchdog.beat()

    def _end(self, step: int) -> None:
        self.watchdog.beat("the last save", LONG)
        with self.clock.measure("saves"):
            self.checkpoints.wait()
        self._write_clock(step)
        signal = self.stop.received or "a signal to another process"
        where = f"after step {step} of {self.config.steps}, which is saved" if step else "before the first step"
        raise Interrupted(f"{signal}: stopped {where}; start the same command again to go on", together=True)

    def _write_clock(self, step: int) -> None:
        if is_leader():
            self.clock.write(step)
