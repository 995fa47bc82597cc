"""Checkpoints of a run: trainable parameters, optimizer state, step, data position and configuration.

    checkpoints/step_N/state   step, skipped, trainable, optimizer (Orbax, sharded as the run was)
    checkpoints/step_N/data    where every packing stream of every process stands
    checkpoints/step_N/meta    configuration, digests of the state and of the frozen weights, time
    checkpoints/damaged/       what could not be read, moved here and never deleted

Frozen weights are not in them: they are the model's that the run started from, and named by their digest.
"""

import json
import logging
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath

from virtue_jax.disk import told_of_the_disk
from virtue_jax.parallel.processes import barrier, gather_bytes, is_alone, is_leader, process_number
from virtue_jax.train.step.stages import TrainState
from virtue_jax.train.survival.digest import tree_digest
from virtue_jax.train.survival.readable import read_json, read_share

DAMAGED = "damaged"


class Restored(NamedTuple):
    """state: on the mesh. data: {"streams": {stream: where it stands}} of all processes."""

    state: TrainState
    data: dict


class OtherDigest(ValueError):
    """What was restored is not what was saved; all processes find it alike."""


class RunCheckpoints:
    """Orbax checkpoints in `directory`, written in the background by all processes, each complete or absent.

    identity: the configuration that must agree for a run to be resumed. frozen: digest of the frozen weights. say:
    prints a line (on the leader).
    """

    def __init__(self, directory: Path, *, keep: int, identity: dict, frozen: str, say: Callable[[str], None] = print):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, step_prefix="step", enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self._directory = directory.absolute()
        self._identity, self._frozen, self._say = identity, frozen, say
        self._writing: int | None = None
        logging.getLogger("absl").addFilter(_said_by_us)
        with self._told("the checkpoints"):
            self._manager = ocp.CheckpointManager(epath.Path(self._directory), options=options)
        self._there = self._listed()

    def save(self, state: TrainState, data: dict, *, step: int) -> None:
        """Returns when the state is copied; writing goes on behind. A step that is there already is left.

        data: the state of this process's data iterator (`TrainingLoader.get_state`).

        Raises:
            OSError: this or an earlier checkpoint could not be written; names the folder and the remedy.
        """
        if step in self._there:
            return
        self.wait()  # so that what went wrong is said of the checkpoint that it went wrong with
        self._writing = step
        with self._told(f"the checkpoint of step {step}"), jax.transfer_guard("allow"):
            meta = {
                "config": self._identity,
                "frozen": self._frozen,
                "state": tree_digest(state._asdict()),
                "time": time.time(),
            }
            args = ocp.args.Composite(
                state=ocp.args.StandardSave(state._asdict()),
                data=ocp.args.JsonSave(merge_streams(data)),
                meta=ocp.args.JsonSave(meta),
            )
            self._manager.save(step, args=args, force=True)
        self._there.add(step)

    def wait(self) -> None:
        """Returns when what was saved is written. Raises as `save`."""
        with self._told(f"the checkpoint of step {self._writing}"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def check(self) -> None:
        """Looks at what is written in the background. Raises OSError: a checkpoint could not be written."""
        with self._told(f"the checkpoint of step {self._writing}"):
            self._manager.check_for_errors()

    def restore(self, abstract: TrainState) -> Restored | None:
        """The newest checkpoint that is whole, onto the shardings of `abstract`; None where there is none yet.

        Damaged ones that are newer are said, and moved to `damaged/`.

        Raises:
            ValueError: a checkpoint of another configuration or of other frozen weights, or none that is whole.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._there, reverse=True):
            meta, problem = self._read(lambda step=step: self._meta(step))
            if problem is None:
                self._refuse_another_run(step, meta)
                restored, problem = self._restored(step, abstract, meta)
            if problem is None:
                self._set_aside(damaged)
                age = _age(time.time() - meta["time"])
                self._say(f"resumed at step {step} from {self._directory / f'step_{step}'}, written {age} ago")
                return restored
            self._say(f"{self._directory / f'step_{step}'} is damaged and left out: {problem}")
            damaged[step] = problem
        if damaged:
            raise ValueError(
                f"{self._directory}: none of the checkpoints of steps {sorted(damaged)} can be read "
                f"({damaged[max(damaged)]}); bring one back from a copy, or start anew in another workdir"
            )
        return None

    def _listed(self) -> set[int]:
        """The steps that the leader finds, the same on all processes."""
        return set(json.loads(gather_bytes(json.dumps(sorted(self._manager.all_steps())).encode())[0]))

    def _meta(self, step: int) -> dict:
        """Of a checkpoint that this process can read, as far as one process can tell."""
        folder = self._directory / f"step_{step}"
        meta = read_json(folder / "meta" / "metadata")
        missing = {"config", "frozen", "state", "time"} - set(meta)
        if missing:
            raise ValueError(f"meta lacks {sorted(missing)}")
        if not is_alone():
            read_json(folder / "data" / "metadata")
            read_share(folder / "state", jax.process_index(), jax.process_count())
        return meta

    def _restored(self, step: int, abstract: TrainState, meta: dict) -> tuple:
        """As `_read`, but of what all processes do together: one that fails alone ends, since the others wait for it.

        Raises:
            OSError: several processes, and this one failed.
        """
        if is_alone():
            return self._read(lambda: self._restore(step, abstract, meta))
        try:
            return self._restore(step, abstract, meta), None
        except OtherDigest as error:
            return None, first_line(error)
        except Exception as error:
            raise OSError(
                f"{self._directory / f'step_{step}'} could be read, but process {process_number()} cannot restore it: "
                f"{first_line(error)}; if a new start fails too, move that folder away to go on from the one before"
            ) from error

    def _restore(self, step: int, abstract: TrainState, meta: dict) -> Restored:
        parts = {"state": ocp.args.StandardRestore(abstract._asdict()), "data": ocp.args.JsonRestore()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**parts))
        state_digest = tree_digest(restored["state"])
        if state_digest != meta["state"]:
            raise OtherDigest(f"the state has digest {state_digest}, it was saved with {meta['state']}")
        return Restored(TrainState(**restored["state"]), restored["data"])

    def _read(self, read: Callable) -> tuple:
        """(what was read, None) or (None, what is wrong), the same on all processes, each of which reads for itself."""
        value, problem = None, ""
        try:
            value = read()
        except Exception as error:  # Orbax and tensorstore raise many types for damaged files
            problem = first_line(error)
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in problem:
                raise
        problems = [text.decode() for text in gather_bytes(problem.encode())]
        problem = next((text for text in problems if text), None)
        return (value, None) if problem is None else (None, problem)

    def _refuse_another_run(self, step: int, meta: dict) -> None:
        if meta["config"] != self._identity:
            raise ValueError(
                f"{self._directory} holds a run with another configuration "
                f"({_differences(meta['config'], self._identity)}); use another workdir or the same configuration"
            )
        if meta["frozen"] != self._frozen:
            raise ValueError(
                f"{self._directory / f'step_{step}'} was trained over frozen weights with digest {meta['frozen']}, "
                f"those loaded now have {self._frozen}; point config.model at the model the run started from, "
                "or use another workdir"
            )

    def _set_aside(self, damaged: dict[int, str]) -> None:
        if not damaged:
            return
        for step in damaged if is_leader() else ():
            folder = self._directory / f"step_{step}"
            aside = self._directory / DAMAGED / f"step_{step}.{time.time_ns()}"
            aside.parent.mkdir(exist_ok=True)
            folder.rename(aside)
            self._say(f"moved {folder} to {aside}")
        barrier("damaged checkpoints are aside")
        self._manager.reload()
        self._there = self._listed()

    @contextmanager
    def _told(self, what: str):
        with told_of_the_disk(what, self._directory):
            yield

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.close()
            return
        try:
            self.close()
        except Exception as error:  # what ended the run is what is raised
            self._say(f"{self._directory}: {first_line(error)}")

    def close(self) -> None:
        """Waits for the checkpoint that is being written. Raises as `save`."""
        try:
            self.wait()
            with self._told("the last checkpoint"):
                self._manager.close()
        finally:
            logging.getLogger("absl").removeFilter(_said_by_us)


def _said_by_us(record: logging.LogRecord) -> bool:
    """Orbax prints the stack of every thread that meets a full disk; the error itself is raised, and told in a line."""
    return not (record.levelno >= logging.ERROR and "orbax" in record.pathname)


def merge_streams(data: dict) -> dict:
    """All processes' data positions as one: every packing stream belongs to one process."""
    merged: dict = {}
    for position in gather_bytes(json.dumps(data).encode()):
        merged |= json.loads(position)["streams"]
    return {"streams": dict(sorted(merged.items(), key=lambda item: int(item[0])))}


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _differences(old, new, where: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        differences = [
            _differences(old.get(k), new.get(k), f"{where}.{k}" if where else k)
            for k in keys
            if old.get(k) != new.get(k)
        ]
        return ", ".join(differences)
    return f"{where}: {old!r} there, {new!r} here"


def _age(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
