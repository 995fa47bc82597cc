"""Checkpoints of a run: step, trainable parameters, optimizer state, data position and configuration."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp
from etils import epath

from virtue_jax.train.step import TrainState


class RunCheckpoints:
    """Orbax checkpoints in `directory`, written in the background, each complete or absent.

    Frozen parameters are not in them: they are the model's that the run started from.
    """

    def __init__(self, directory: Path, *, keep: int, config: dict):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, step_prefix="step", enable_async_checkpointing=True)
        self._config = config
        self._manager = ocp.CheckpointManager(epath.Path(directory.absolute()), options=options)

    def save(self, state: TrainState, position: dict, *, force: bool = False) -> None:
        """position: the data iterator's own state (JSON-able); one per process."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict()),
            data=ocp.args.JsonSave(position),
            config=ocp.args.JsonSave(self._config),
        )
        self._manager.save(step, args=args, force=force)

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict] | None:
        """The newest complete checkpoint as (state, data position), or None where there is none yet."""
        step = self._manager.latest_step()
        if step is None:
            return None
        saved = self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]
        if saved != self._config:
            raise ValueError(
                f"{self._manager.directory} holds a run with another configuration "
                f"({_differences(saved, self._config)}); use another workdir or the same configuration"
            )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract._asdict()), data=ocp.args.JsonRestore()),
        )
        return TrainState(**restored["state"]), restored["data"]

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the checkpoint that is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def _differences(old, new, where: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        found = [
            _differences(old.get(k), new.get(k), f"{where}.{k}" if where else k)
            for k in keys
            if old.get(k) != new.get(k)
        ]
        return ", ".join(found)
    return f"{where}: {old!r} there, {new!r} here"


def abstract_like(state: TrainState, sharding: jax.sharding.Sharding) -> TrainState:
    """Shapes of `state` with a sharding on every leaf: what `restore` reads into."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)
