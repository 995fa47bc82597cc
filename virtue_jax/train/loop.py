"""Runs a training configuration from its model to its last checkpoint."""

import dataclasses
import json
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from virtue_jax.batch import Batch
from virtue_jax.checkpoint import save_model
from virtue_jax.data.loader import TrainingLoader
from virtue_jax.parallel.mesh import data_mesh, put_rows, replicated
from virtue_jax.train.checkpoints import RunCheckpoints, abstract_like
from virtue_jax.train.config import TrainConfig
from virtue_jax.train.metrics import MetricsLog
from virtue_jax.train.setup import TrainSetup, setup
from virtue_jax.train.sources import make_loader, open_source
from virtue_jax.train.start import StartingModel, load_starting_model
from virtue_jax.train.step import TrainState
from virtue_jax.train.summary import print_summary


def train(config: TrainConfig, workdir: str | Path, console: Console | None = None) -> Path:
    """Trains, or resumes where `workdir` holds checkpoints of the same run; returns the trained model's directory.

    Raises:
        ValueError: a configuration that cannot run, or another one than the checkpoints in `workdir` come from.
        InvalidExample: a row that cannot be read; names it.
        FloatingPointError: a loss that is not finite.
    """
    console = console or Console()
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    mesh = data_mesh()
    source = open_source(config.data, config.seed)
    start = load_starting_model(config, source, workdir)
    run = setup(config, start.virtue, mesh)
    state, frozen = _place(run, start)
    loader = make_loader(config, source, start.virtue, start.tokenizer)
    with RunCheckpoints(workdir / "checkpoints", keep=config.keep, config=run_identity(config)) as checkpoints:
        restored = checkpoints.restore(abstract_like(state, replicated(mesh)))
        if restored is not None:
            state, position = restored
            loader.set_state(position)
            console.print(f"resumed at step {int(state.step)} of {config.steps} from {workdir / 'checkpoints'}")
        state = _steps(config, run, state, frozen, loader, checkpoints, workdir, console)
    model = workdir / "model"
    if not model.exists():
        save_model(model, start.virtue, {**frozen, **state.trainable}, **start.companions)
    console.print(f"model: {model}")
    return model


def run_identity(config: TrainConfig) -> dict:
    """What must agree for a run to be resumed: everything but how it reports, saves and prefetches."""
    identity = dataclasses.asdict(config) | {"log_every": 0, "checkpoint_every": 0, "keep": 0}
    identity["data"]["workers"] = 0
    return json.loads(json.dumps(identity))


def _place(run: TrainSetup, start: StartingModel) -> tuple[TrainState, dict]:
    """Parameters onto the mesh: trainable ones in float32 with a fresh optimizer, frozen ones as they are."""
    whole = replicated(run.mesh)
    trainable = {p: jax.device_put(start.params[p].astype(np.float32), whole) for p in run.state.trainable}
    frozen = {path: jax.device_put(start.params[path], whole) for path in run.frozen}
    return run.init(trainable), frozen


def _steps(config, run, state, frozen, loader: TrainingLoader, checkpoints, workdir, console) -> TrainState:
    step = int(state.step)
    if step >= config.steps:
        return state
    groups = put_rows(next(loader), run.mesh)
    compiled = run.step.lower(state, frozen, groups).compile()
    print_summary(run, groups, compiled.memory_analysis(), console)
    log = MetricsLog(workdir, start=step, steps=config.steps, console=console)
    pace = _Pace(groups)
    try:
        while True:
            state, metrics = compiled(state, frozen, groups)
            step += 1
            # The position after this step's batch; the prefetched next batch is not part of it.
            position = loader.get_state()
            log.advance(step)
            if step == config.steps or step % config.log_every == 0:
                log.write(step, {name: float(value) for name, value in metrics.items()} | pace.lap(step))
            if step == config.steps or step % config.checkpoint_every == 0:
                checkpoints.save(state, position)
            if step == config.steps:
                return state
            groups = put_rows(next(loader), run.mesh)
    finally:
        log.close()
        loader.close()


class _Pace:
    """Steps and queries per second since the last look."""

    def __init__(self, groups: tuple[Batch, ...]):
        self._queries = int(np.sum(groups[0].valid))
        self._time, self._step = time.perf_counter(), None

    def lap(self, step: int) -> dict[str, float]:
        now = time.perf_counter()
        steps = 1 if self._step is None else step - self._step
        seconds, self._time, self._step = (now - self._time) / steps, now, step
        return {"seconds_per_step": seconds, "examples_per_second": self._queries / seconds}
