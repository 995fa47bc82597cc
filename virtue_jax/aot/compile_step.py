"""Compiling the stages of a training step for chips that are not there."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax

from virtue_jax.aot.hlo.program import Program, read_program
from virtue_jax.aot.xla_flags import Flag
from virtue_jax.train.step.program_memory import ProgramMemory, program_memory
from virtue_jax.train.step.programs import trace_stages
from virtue_jax.train.step.setup import TrainSetup

# The same effort by its older name, a number, and by its newer one; no version of jax takes both from a compilation.
LOW_EFFORT = {"optimization_level": "O0"}
if jax.__version_info__ < (0, 11, 1):
    LOW_EFFORT = {"exec_time_optimization_effort": -1.0}
AT_ONCE = 2  # compilers of two stages side by side; each takes up to 5 GB of this machine's memory at full size


@dataclass(frozen=True)
class CompiledStage:
    """One stage for one chip. program: None where it does not fit, and `failure` is what the compiler said.

    memory: of one chip; zeros where it does not fit.
    """

    program: Program | None
    failure: str
    memory: ProgramMemory
    seconds: float


@dataclass(frozen=True)
class CompiledStep:
    """stages by name; resident: bytes on one chip of what stays there during the whole step, by what it is."""

    stages: Mapping[str, CompiledStage]
    resident: Mapping[str, int]
    traced: Mapping[str, jax.stages.Traced]


def compile_step(run: TrainSetup, flags: Sequence[Flag] = (), *, low_effort: bool = False) -> CompiledStep:
    """Compiles all stages of the very step that `virtue train` runs.

    low_effort: in a fifth of the time, with the same arithmetic and collectives, as much memory, and instructions whose
    estimated cycles mean nothing.

    Raises:
        jax.errors.JaxRuntimeError: what the compiler refuses for other reasons than memory.
    """
    options = {flag.name: flag.value for flag in flags} | (LOW_EFFORT if low_effort else {})
    traced = trace_stages(run)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        compiled = pool.map(lambda stage: _compile(stage, options), traced.values())
        stages = dict(zip(traced, compiled, strict=True))
    return CompiledStep(stages, _resident(run), traced)


def _compile(traced: jax.stages.Traced, options: Mapping) -> CompiledStage:
    begin = time.perf_counter()
    try:
        program = traced.lower().compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or "Scoped" in str(error):  # a kernel's scratch is no matter of HBM
            raise
        return CompiledStage(None, str(error).splitlines()[0], ProgramMemory(0, 0, 0), time.perf_counter() - begin)
    text, memory = program.as_text(), program_memory(program)
    return CompiledStage(read_program(text), "", memory, time.perf_counter() - begin)


def _resident(run: TrainSetup) -> dict[str, int]:
    """Measured as arguments of programs that do nothing, for what layouts add: a last axis of 2 takes 128."""
    parts = {
        "frozen parameters": run.frozen,
        "trainable parameters": run.state.trainable,
        "optimizer": (run.state.step, run.state.optimizer, run.state.skipped),
        "batch": run.groups,
    }
    sizes = {name: _argument_bytes(part) for name, part in parts.items() if jax.tree.leaves(part)}
    # The loop hands over the next step's batch while this one runs.
    return {name: size for name, size in sizes.items()} | {"next batch": sizes["batch"]}


def _argument_bytes(tree) -> int:
    return program_memory(jax.jit(lambda x: x).lower(tree).compile()).arguments
