"""Steps whose loss or gradient is not finite: told, kept to be run again, or skipped up to a limit.

workdir/nonfinite_step_K/batch_P.npz   process P's rows of the step: "GROUP/FIELD/STREAM" -> array
workdir/nonfinite_step_K/state/        trainable parameters and optimizer before the step (Orbax)
workdir/nonfinite_step_K/run.json      step, loss, rows, configuration, model; written last
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from virtue_jax.atomic_files import replace_text
from virtue_jax.batch import Batch
from virtue_jax.config import VirtueConfig, to_dict
from virtue_jax.disk import told_of_the_disk
from virtue_jax.parallel.processes import barrier, gather_bytes, is_leader
from virtue_jax.train.step.config import TrainConfig
from virtue_jax.train.step.stages import TrainState

FILE = "nonfinite.jsonl"
RUN = "run.json"
_SHOWN_ROWS = 4


class NonFinite:
    """Says what becomes of a step that is not finite, as `config.nonfinite` has it.

    frozen: digest of the frozen weights. skipped: such steps so far, as the restored state counts them. streams: this
    process's packing streams, whose rows its batches hold.
    """

    def __init__(
        self,
        config: TrainConfig,
        virtue: VirtueConfig,
        workdir: Path,
        frozen: str,
        skipped: int,
        streams: tuple[int, ...],
    ):
        self._config, self._virtue, self._workdir, self._frozen = config, virtue, workdir, frozen
        self.skipped, self._streams = skipped, streams

    def meet(self, step: int, batch, metrics: dict[str, float], state: TrainState) -> str:
        """Every process calls it for step number `step` (from 1) with its own `Step`.

        state: the newest one; under "stop" its parameters are those before the step, whatever was done since.

        Returns:
            A line that says what was skipped.

        Raises:
            FloatingPointError: the run stops: "stop", or more than `skip_limit` skipped.
        """
        rows = _all_rows(batch.report.origins)
        what = f"loss {metrics['loss']}, gradient norm {metrics['gradient_norm']} at step {step}"
        self.skipped += 1
        if self._config.nonfinite == "stop":
            folder = self._workdir / f"nonfinite_step_{step}"
            self._keep(folder, step, batch.groups, metrics, rows, state)
            raise FloatingPointError(
                f"{what}; its rows: {_named(rows)}. `python -m virtue_jax.train.reproduce {folder}` runs the "
                "step again and says what is not finite; --config.nonfinite=skip goes on without it"
            )
        self._note(step, metrics, rows)
        if self.skipped > self._config.skip_limit:
            raise FloatingPointError(
                f"{what}; with it {self.skipped} steps were not finite, more than config.skip_limit "
                f"{self._config.skip_limit}; all are named in {self._workdir / FILE}. Lower the learning rate, "
                "compute in float32, or find the cause with --config.nonfinite=stop"
            )
        return f"{what}: skipped ({self.skipped} of at most {self._config.skip_limit}); its rows: {_named(rows)}"

    def _note(self, step: int, metrics: dict, rows: list) -> None:
        if is_leader():
            with told_of_the_disk("a skipped step", self._workdir), (self._workdir / FILE).open("a") as file:
                values = {name: repr(float(value)) for name, value in metrics.items()}
                file.write(json.dumps({"step": step, "metrics": values, "rows": rows}) + "\n")

    def _keep(self, folder: Path, step: int, groups, metrics: dict, rows: list, state: TrainState) -> None:
        if (folder / RUN).exists():  # met before by the same run, with the same bits
            return
        barrier("looked for the reproducer")
        with told_of_the_disk(f"the reproducer of step {step}", folder), jax.transfer_guard("allow"):
            if is_leader():
                shutil.rmtree(folder, ignore_errors=True)  # half of one
                folder.mkdir()
            barrier("the reproducer has a folder")
            np.savez(folder / f"batch_{jax.process_index()}.npz", **flat_groups(groups, self._streams))
            before = state._replace(step=_like(state.step, step - 1), skipped=_like(state.skipped, 0))
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(epath.Path((folder / "state").absolute()), before._asdict())
            barrier("the reproducer is written")
            if is_leader():
                run = {
                    "step": step,
                    "metrics": {name: repr(float(value)) for name, value in metrics.items()},
                    "rows": rows,
                    "config": dataclasses.asdict(self._config),
                    "virtue": to_dict(self._virtue),
                    "frozen": self._frozen,
                    "processes": jax.process_count(),
                }
                replace_text(folder / RUN, json.dumps(run, indent=1) + "\n")


def flat_groups(groups: tuple[Batch, ...], streams: tuple[int, ...]) -> dict[str, np.ndarray]:
    """{"GROUP/FIELD/STREAM": rows} of host batches that hold the rows of `streams`; `grouped` is its inverse."""
    return {
        f"{number}/{name}/{stream}": part
        for number, batch in enumerate(groups)
        for name, x in batch._asdict().items()
        if x is not None
        for stream, part in zip(streams, np.split(np.asarray(x), len(streams)), strict=True)
    }


def grouped(parts: list[dict[str, np.ndarray]]) -> tuple[Batch, ...]:
    """Row groups of all streams from every process's `flat_groups`; a stream may be in several."""
    every = {key: x for part in parts for key, x in part.items()}
    groups: dict[int, dict[str, dict[int, np.ndarray]]] = {}
    for key, x in every.items():
        number, name, stream = key.split("/")
        groups.setdefault(int(number), {}).setdefault(name, {})[int(stream)] = x
    return tuple(
        Batch(**{name: np.concatenate([rows[s] for s in sorted(rows)]) for name, rows in groups[number].items()})
        for number in sorted(groups)
    )


def _like(x: jax.Array, value: int) -> jax.Array:
    return jax.device_put(np.asarray(value, x.dtype), x.sharding)


def _all_rows(origins) -> list:
    """[process][row group][row] -> origins of what it holds."""
    return [json.loads(part) for part in gather_bytes(json.dumps(origins).encode())]


def _named(rows: list) -> str:
    names = [name for process in rows for group in process for row in group for name in row]
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - _SHOWN_ROWS} more" if len(names) > _SHOWN_ROWS else ""
    return ", ".join(names[:_SHOWN_ROWS]) + more
