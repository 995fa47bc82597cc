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

from virtue_jax.atomic_files import replace_text
from virtue_jax.config import from_dict, to_dict
from virtue_jax.data.config import DataConfig
from virtue_jax.data.sources.open_data import make_loader, open_sources
from virtue_jax.model_directory import save_model
from virtue_jax.parallel.mesh import local_streams, make_mesh, platform_of, row_parts, row_shards
from virtue_jax.parallel.processes import barrier, gather_bytes, is_leader, to_leader
from virtue_jax.train.cost.fitting import fitted_setup
from virtue_jax.train.reporting.goodput import Goodput
from virtue_jax.train.reporting.metrics import MetricsLog, SilentLog
from virtue_jax.train.reporting.step_log import StepLog
from virtue_jax.train.reporting.summary import print_summary
from virtue_jax.train.rows import resolve_rows
from virtue_jax.train.step.config import TrainConfig
from virtue_jax.train.step.programs import compile_stages
from virtue_jax.train.step.setup import TrainSetup, with_attention
from virtue_jax.train.step.stages import LOG_TEMPERATURE, TrainState
from virtue_jax.train.steps import StepLoop
from virtue_jax.train.survival.checkpoints import Restored, RunCheckpoints
from virtue_jax.train.survival.digest import digest
from virtue_jax.train.survival.identity import CHECKPOINTS, ROWS, forget_another_run, has_checkpoint, run_identity
from virtue_jax.train.survival.interruption import StopSignal
from virtue_jax.train.survival.nonfinite import NonFinite
from virtue_jax.train.survival.watchdog import LONG, Watchdog
from virtue_jax.train.weights import StartingModel, load_weights, starting_model

CONFIG = "config.json"  # of the last start, whole; checkpoints hold what must agree


def train(
    config: TrainConfig,
    workdir: str | Path,
    console: Console | None = None,
    *,
    seen: Callable[[int, Any], None] | None = None,
) -> Path:
    """Trains, or resumes where `workdir` holds checkpoints of the same run; returns the trained model's directory.

    With several processes (`parallel.processes.join`) all of them call it; `workdir` is a folder that all can reach.
    seen: called with (step, this process's `Step`) when a step is finished.

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
    with StopSignal() as stop, Watchdog(config.watchdog_minutes, workdir) as watchdog:
        with clock.measure("init"):
            made = _make(config, workdir, console, clock)
        with _closing(made.loader), _checkpoints(made, workdir, console) as checkpoints:
            state = _begin(made, checkpoints, clock, watchdog, console)
            if int(state.step) < config.steps:
                loop = _step_loop(made, state, checkpoints, stop, clock, watchdog, workdir, console, seen)
                state = _run_steps(loop, state, console)
        model = workdir / "model"
        watchdog.beat("writing the model", LONG)
        _write_model(model, made.start, {**made.frozen, **state.trainable}, watchdog)
    console.print(f"model: {model}", soft_wrap=True)
    return model


@dataclasses.dataclass(frozen=True)
class _Made:
    """What a run is made of before it looks for checkpoints. config: with nothing left open. digest: of `frozen`."""

    config: TrainConfig
    start: StartingModel
    run: TrainSetup
    frozen: Mapping[str, jax.Array]
    digest: str
    loader: Any
    streams: tuple[int, ...]


def _make(config: TrainConfig, workdir: Path, console: Console, clock: Goodput) -> _Made:
    mesh = make_mesh(config.mesh)
    config = with_attention(config, platform_of(mesh))
    _check_streams(config, mesh, workdir, _say(console))
    if is_leader():
        forget_another_run(workdir, config, row_shards(mesh), _say(console))
    sources = open_sources(config.data, config.seed, _say(console))
    start = starting_model(config, sources, workdir)
    config = _with_rows(config, sources, start, mesh, workdir)
    config, run = fitted_setup(config, start.virtue, mesh, _say(console))
    if is_leader():
        replace_text(workdir / CONFIG, json.dumps(dataclasses.asdict(config), indent=1) + "\n")
    with clock.measure("weights"):
        frozen = load_weights(config, start.virtue, run.frozen)
        frozen_digest = digest(frozen)
    streams = local_streams(mesh, config.data.streams)
    loader = make_loader(
        config.data,
        sources,
        start.virtue,
        start.tokenizer,
        batch_size=config.batch_size,
        seed=config.seed,
        streams=streams,
    )
    return _Made(config, start, run, frozen, frozen_digest, loader, streams)


def _checkpoints(made: _Made, workdir: Path, console: Console) -> RunCheckpoints:
    config, folder = made.config, workdir / CHECKPOINTS
    identity = run_identity(config)
    return RunCheckpoints(folder, keep=config.keep, identity=identity, frozen=made.digest, say=_say(console))


def _check_streams(config: TrainConfig, mesh: Mesh, workdir: Path, say: Callable[[str], None]) -> None:
    parts, streams = row_parts(mesh), config.data.streams
    if streams >= parts:
        return
    problem = f"config.data.streams {streams}: {parts} processes hold different rows, and several would read the same"
    if not has_checkpoint(workdir):
        raise ValueError(f"{problem} elements; set config.data.streams={parts} or a multiple, before the first step")
    say(f"{problem} elements: reading does not get faster with more of them, and this run keeps its streams")


def _run_steps(loop: StepLoop, state: TrainState, console: Console) -> TrainState:
    loop.stop.deferred = True
    try:
        state = loop.run(state)
        loop.watchdog.beat("the last save", LONG)
        with loop.clock.measure("saves"):
            loop.checkpoints.wait()
    finally:
        loop.stop.deferred = False
        loop.log.close()
        if is_leader():
            loop.clock.write(loop.done)
            loop.clock.tell(console)
    return state


def _step_loop(made: _Made, state: TrainState, checkpoints, stop, clock, watchdog, workdir, console, seen) -> StepLoop:
    config, run, virtue, begin = made.config, made.run, made.start.virtue, int(state.step)
    watchdog.beat("the compilation", LONG)
    with clock.measure("compile"):
        stages = compile_stages(run)
    print_summary(run, config, stages.memory, console)
    out = MetricsLog(workdir, start=begin, steps=config.steps, console=console) if is_leader() else SilentLog()
    watchdog.beat()
    return StepLoop(
        config=config,
        stages=stages,
        frozen=made.frozen,
        loader=made.loader,
        streams=made.streams,
        checkpoints=checkpoints,
        log=StepLog(config, virtue, run, out, clock, workdir, streams=made.streams, step=begin),
        clock=clock,
        stop=stop,
        nonfinite=NonFinite(config, virtue, workdir, made.digest, int(state.skipped), made.streams),
        watchdog=watchdog,
        workdir=workdir,
        seen=seen,
    )


def _with_rows(config: TrainConfig, sources, start: StartingModel, mesh: Mesh, workdir: Path) -> TrainConfig:
    """The configuration with its row groups. Chosen ones are kept in `workdir/rows.json`, because a resumed run must
    have the same on whatever mesh."""
    if config.data.rows:
        return config
    file = workdir / ROWS
    if is_leader() and not file.exists():
        chosen = resolve_rows(config, sources, start.virtue, start.tokenizer, shards=row_shards(mesh))
        replace_text(file, json.dumps(to_dict(chosen)["rows"], indent=1) + "\n")
    barrier("the rows are chosen")
    given = to_dict(config.data) | {"rows": json.loads(file.read_text())}
    return dataclasses.replace(config, data=from_dict(DataConfig, given, str(file)))


def _begin(
    made: _Made, checkpoints: RunCheckpoints, clock: Goodput, watchdog: Watchdog, console: Console
) -> TrainState:
    """The restored state, the data at its place; or a fresh one."""
    watchdog.beat("the restore", LONG)
    with clock.measure("restore"):
        restored = checkpoints.restore(made.run.state)
    if restored is not None:
        return _resumed(made, restored, console)
    watchdog.beat("the starting weights", LONG)
    with clock.measure("weights"):
        wanted = {path: x for path, x in made.run.state.trainable.items() if path != LOG_TEMPERATURE}
        return made.run.init(load_weights(made.config, made.start.virtue, wanted, have=made.frozen))


def _resumed(made: _Made, restored: Restored, console: Console) -> TrainState:
    made.loader.set_state(restored.data)
    state = restored.state
    skipped = int(state.skipped)
    if skipped and made.config.nonfinite == "stop":
        console.print(f"{skipped} steps were skipped so far; from here on the first that is not finite stops the run")
        state = state._replace(skipped=jax.device_put(np.zeros((), np.int32), state.skipped.sharding))
    return state


def _write_model(folder: Path, start: StartingModel, weights: Mapping[str, jax.Array], watchdog: Watchdog) -> None:
    """The trained model, on the leader's side of the file system; a model that is there stays."""
    if any(json.loads(part) for part in gather_bytes(json.dumps(is_leader() and folder.exists()).encode())):
        return
    weights = {path: x for path, x in weights.items() if path != LOG_TEMPERATURE}
    if jax.process_count() > 1:
        weights = {path: _gathered(weights[path], watchdog) for path in sorted(weights)}
    if is_leader():
        save_model(folder, start.virtue, weights, **start.companions)
    barrier("the model is written")


def _gathered(x: jax.Array, watchdog: Watchdog) -> np.ndarray | None:
    watchdog.beat("writing the model", LONG)
    return to_leader(x)


def _say(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def _closing(loader):
    try:
        yield
    finally:
        loader.close()
