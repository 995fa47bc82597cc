"""Runs a training configuration from its model to its last checkpoint."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from virtue_jax.checkpoint import save_model
from virtue_jax.config import from_dict, to_dict
from virtue_jax.new_directory import replace_text
from virtue_jax.parallel.mesh import local_streams, make_mesh, row_shards
from virtue_jax.parallel.processes import barrier, gather_bytes, is_leader, to_leader
from virtue_jax.train.config import DataConfig, TrainConfig
from virtue_jax.train.cost.fitting import fitted_setup
from virtue_jax.train.reporting.goodput import Goodput
from virtue_jax.train.reporting.metrics import MetricsLog, SilentLog
from virtue_jax.train.reporting.step_log import StepLog
from virtue_jax.train.reporting.summary import print_summary
from virtue_jax.train.rows import resolve_rows
from virtue_jax.train.setup import TrainSetup
from virtue_jax.train.sources import make_loader, open_sources
from virtue_jax.train.stages import compile_stages
from virtue_jax.train.start import StartingModel, load_weights, starting_model
from virtue_jax.train.step import LOG_TEMPERATURE, TrainState
from virtue_jax.train.steps import StepLoop
from virtue_jax.train.survival.checkpoints import Restored, RunCheckpoints
from virtue_jax.train.survival.digest import digest
from virtue_jax.train.survival.interruption import StopSignal
from virtue_jax.train.survival.nonfinite import NonFinite

# What does not make it another run: how it is spread, saved, watched and told, and where the same model lies.
_FREE = {
    "mesh": None,
    "memory_gib": 0,
    "log_every": 0,
    "checkpoint_every": 0,
    "checkpoint_minutes": 0,
    "keep": 0,
    "nonfinite": "",
    "skip_limit": 0,
    "watchdog_minutes": 0,
    "profile_steps": None,
}


def train(
    config: TrainConfig,
    workdir: str | Path,
    console: Console | None = None,
    *,
    seen: Callable[[int, Any], None] | None = None,
) -> Path:
    """Trains, or resumes where `workdir` holds checkpoints of the same run; returns the trained model's directory.

    With several processes (`parallel.processes.join`) all of them call it; `workdir` is a folder that all can reach.
    seen: called with (step, this process's `StepBatch`) when a step is finished.

    Raises:
        ValueError: a configuration that cannot run, or another one than the checkpoints in `workdir` come from.
        InvalidExample: more rows that cannot be read than `config.data.bad_rows` allows; names the last.
        FloatingPointError: a loss or gradient that is not finite, as `config.nonfinite` has it.
        OSError: something could not be written; `DiskFull` where the disk is full.
        Interrupted: SIGTERM or SIGINT; what it did is saved.
    """
    console = (console or Console()) if is_leader() else Console(quiet=True)
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    clock = Goodput(workdir)
    with StopSignal() as stop:
        with clock.measure("init"):
            mesh = make_mesh(config.mesh)
            sources = open_sources(config.data, config.seed)
            start = starting_model(config, sources, workdir)
            config = _with_rows(config, sources, start, mesh, workdir)
            config, run = fitted_setup(config, start.virtue, mesh, _say(console))
            frozen = load_weights(config, start.virtue, run.frozen)
            named = digest(frozen)
            streams = local_streams(mesh, config.data.streams)
            loader = make_loader(config, sources, start.virtue, start.tokenizer, streams)
        open_checkpoints = RunCheckpoints(
            workdir / "checkpoints", keep=config.keep, identity=run_identity(config), frozen=named, say=_say(console)
        )
        with _closing(loader), open_checkpoints as checkpoints:
            with clock.measure("restore"):
                restored = checkpoints.restore(run.state)
                state = _begin(config, start, run, frozen, loader, restored, console)
            if int(state.step) < config.steps:
                made = _Made(config, start, run, frozen, named, loader, streams, checkpoints, console)
                state = _run_steps(made, state, stop, clock, workdir, seen)
        model = workdir / "model"
        _write_model(model, start, {**frozen, **state.trainable})
    console.print(f"model: {model}", soft_wrap=True)
    return model


def _run_steps(made: "_Made", state: TrainState, stop: StopSignal, clock: Goodput, workdir: Path, seen) -> TrainState:
    config, run, begin, virtue = made.config, made.run, int(state.step), made.start.virtue
    with clock.measure("compile"):
        stages = compile_stages(run)
    print_summary(run, config, stages.memory, made.console)
    out = SilentLog()
    if is_leader():
        out = MetricsLog(workdir, start=begin, steps=config.steps, console=made.console)
    loop = StepLoop(
        config=config,
        stages=stages,
        frozen=made.frozen,
        loader=made.loader,
        streams=made.streams,
        checkpoints=made.checkpoints,
        log=StepLog(config, virtue, run, out, clock, workdir, streams=made.streams, step=begin),
        clock=clock,
        stop=stop,
        nonfinite=NonFinite(config, virtue, workdir, made.digest, int(state.skipped), made.streams),
        workdir=workdir,
        seen=seen,
    )
    stop.deferred = True
    try:
        state = loop.run(state)
        with clock.measure("saves"):
            made.checkpoints.wait()
    finally:
        stop.deferred = False
        out.close()
        if is_leader():
            clock.write(loop.done)
            clock.tell(made.console)
    return state


@dataclasses.dataclass(frozen=True)
class _Made:
    """What a run is made of before its first step."""

    config: TrainConfig
    start: StartingModel
    run: TrainSetup
    frozen: Mapping[str, jax.Array]
    digest: str
    loader: Any
    streams: tuple[int, ...]
    checkpoints: RunCheckpoints
    console: Console


def _with_rows(config: TrainConfig, sources, start: StartingModel, mesh: Mesh, workdir: Path) -> TrainConfig:
    """The configuration with its row groups. Chosen ones are kept in `workdir/rows.json`, because a resumed run must
    have the same on whatever mesh."""
    if config.data.rows:
        return config
    file = workdir / "rows.json"
    if is_leader() and not file.exists():
        chosen = resolve_rows(config, sources, start.virtue, start.tokenizer, shards=row_shards(mesh))
        replace_text(file, json.dumps(to_dict(chosen)["rows"], indent=1) + "\n")
    barrier("the rows are chosen")
    given = to_dict(config.data) | {"rows": json.loads(file.read_text())}
    return dataclasses.replace(config, data=from_dict(DataConfig, given, str(file)))


def run_identity(config: TrainConfig) -> dict:
    """What must agree for a run to be resumed: everything but `_FREE`, workers, micro-batches, and the place of a model
    whose weights are known by their digest."""
    identity = dataclasses.asdict(config) | _FREE
    identity["data"] |= {"workers": 0, "prefetch": 0, "bad_rows": 0}
    identity["data"]["order"] = [list(config.data.sources), list(config.data.rows)]  # dicts of other order are equal
    for group in identity["data"]["rows"].values():
        group["micro_batches"] = 0
    if identity["model"]["directory"]:
        identity["model"]["directory"] = "a model directory"
    identity["numerics"]["remat"] = ""
    return json.loads(json.dumps(identity))


def _begin(config, start, run: TrainSetup, frozen, loader, restored: Restored | None, console) -> TrainState:
    """The restored state, the data at its place; or a fresh one."""
    if restored is None:
        wanted = {path: x for path, x in run.state.trainable.items() if path != LOG_TEMPERATURE}
        return run.init(load_weights(config, start.virtue, wanted, have=frozen))
    loader.set_state(restored.data)
    state = restored.state
    skipped = int(state.skipped)
    if skipped and config.nonfinite == "stop":
        console.print(f"{skipped} steps were skipped so far; from here on the first that is not finite stops the run")
        state = state._replace(skipped=jax.device_put(np.zeros((), np.int32), state.skipped.sharding))
    return state


def _write_model(folder: Path, start: StartingModel, weights: Mapping[str, jax.Array]) -> None:
    """The trained model, on the leader's side of the file system; a model that is there stays."""
    if any(json.loads(part) for part in gather_bytes(json.dumps(is_leader() and folder.exists()).encode())):
        return
    weights = {path: x for path, x in weights.items() if path != LOG_TEMPERATURE}
    if jax.process_count() > 1:
        weights = {path: to_leader(weights[path]) for path in sorted(weights)}
    if is_leader():
        save_model(folder, start.virtue, weights, **start.companions)
    barrier("the model is written")


def _say(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def _closing(loader):
    try:
        yield
    finally:
        loader.close()
