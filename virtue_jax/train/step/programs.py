"""The stages of a step, compiled before the first one: nothing can be compiled again, and each can be timed."""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax

from virtue_jax.batch import Batch
from virtue_jax.parallel.mesh import replicated, rows
from virtue_jax.train.step.program_memory import ProgramMemory, program_memory
from virtue_jax.train.step.setup import TrainSetup
from virtue_jax.train.step.stages import TrainState


@dataclass(frozen=True)
class Stages:
    """`TrainSetup`'s stages as compiled programs, which refuse other shapes, dtypes or shardings than `run`'s.

    memory: {stage: what its program takes} where the backend says it.
    """

    run: TrainSetup
    towers: Callable
    gradients: Callable
    update: Callable
    memory: Mapping[str, ProgramMemory]

    def __call__(self, state: TrainState, frozen: Mapping[str, jax.Array], groups: tuple[Batch, ...]):
        """(state, metrics) of one step, dispatched and not waited for; `state` is given away."""
        return self.run.step(state, frozen, groups, stages=self)

    def timed(self, state: TrainState, frozen: Mapping[str, jax.Array], groups: tuple[Batch, ...]):
        """(state, metrics, {"STAGE_seconds": seconds}): waits for each stage before it starts the next."""
        jax.block_until_ready((state, groups))
        seconds, begin = {}, time.perf_counter()

        def wait(name: str, result) -> None:
            nonlocal begin
            jax.block_until_ready(result)
            now = time.perf_counter()
            seconds[f"{name}_seconds"], begin = now - begin, now

        return *self.run.step(state, frozen, groups, stages=self, done=wait), seconds


def trace_stages(run: TrainSetup) -> dict[str, jax.stages.Traced]:
    """{stage: its program before any compiler}, from shapes alone, in the order in which they run; makes no array."""
    outputs = _placed(jax.eval_shape(run.towers, run.frozen, run.groups), rows(run.mesh))
    inputs = (run.state.trainable, run.state.step, run.frozen, run.embed_inputs(run.groups), outputs)
    found, metrics = jax.eval_shape(run.gradients, *inputs)
    found = {path: _placed(x, run.state.trainable[path].sharding) for path, x in found.items()}
    return {
        "towers": run.towers.trace(run.frozen, run.groups),
        "gradients": run.gradients.trace(*inputs),
        "update": run.update.trace(run.state, found, _placed(metrics["loss"], replicated(run.mesh))),
    }


def compile_stages(run: TrainSetup) -> Stages:
    """Compiles from shapes alone, all stages at once."""
    lowered = {name: traced.lower() for name, traced in trace_stages(run).items()}
    with ThreadPoolExecutor(len(lowered)) as pool:
        programs = dict(zip(lowered, pool.map(lambda stage: stage.compile(), lowered.values()), strict=True))
    memory = {name: program_memory(program) for name, program in programs.items()}
    return Stages(run, **programs, memory={name: used for name, used in memory.items() if used is not None})


def _placed(shapes, sharding):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


class Compilations:
    """Counts what the thread that made it compiles; `close` it."""

    def __init__(self):
        self.count, self.names = 0, []
        self._thread = threading.get_ident()
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, _seconds: float, **facts) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and threading.get_ident() == self._thread:
            self.count += 1
            self.names.append(str(facts.get("fun_name", "?")))

    def close(self) -> None:
        jax.monitoring.unregister_event_duration_listener(self._heard)
