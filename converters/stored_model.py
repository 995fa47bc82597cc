"""A model directory read back under foreign names, a few tensors at a time."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from converters.errors import CheckpointError, refuse
from converters.mapped_file import TensorInfo
from converters.rules import Entry
from converters.safetensors_file import SafetensorsFile
from virtue_jax.config import VirtueConfig
from virtue_jax.model_directory import CARRIED, load_config, parameter_shapes, read_parameters, stored_parameters
from virtue_jax.models.lora import merged_kernel

# Small parameters are read together: opening the checkpoint costs more than reading one.
_BATCH_BYTES = 1 << 26


class Weights(NamedTuple):
    """The tensors of one output file or folder, in the order in which `stream` yields them."""

    infos: dict[str, TensorInfo]
    stream: Callable[[], Iterator[tuple[str, np.ndarray]]]


class StoredModel:
    """A model directory and what it carries.

    Raises:
        FileNotFoundError, ValueError: not a model directory, or damaged.
        CheckpointError: its parameters are not those of its config's model; all differences named.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.config: VirtueConfig = load_config(directory)
        self.stored = stored_parameters(directory)
        shapes = parameter_shapes(self.config)
        absent, unknown = sorted(set(shapes) - set(self.stored)), sorted(set(self.stored) - set(shapes))
        problems = [f"{directory}: missing parameter {path} {shapes[path]}" for path in absent]
        problems += [f"{directory}: unknown parameter {path}" for path in unknown]
        problems += [
            f"{directory}: parameter {path} has shape {self.stored[path].shape}, expected {shapes[path]}"
            for path in sorted(set(shapes) & set(self.stored))
            if self.stored[path].shape != shapes[path]
        ]
        refuse(problems)

    def carried(self, name: str) -> Path | None:
        """A file that is carried along, or None."""
        file = self.directory / CARRIED / name
        return file if file.is_file() else None

    def total_bytes(self) -> int:
        """Bytes of all tensors, the carried ones included."""
        kept = sum(file.stat().st_size for file in (self.directory / CARRIED).glob("*.safetensors"))
        return kept + sum(map(_nbytes, self.stored.values()))

    def weights(self, component: str, entries: list[Entry], *, merge_adapter: bool = False) -> Weights:
        """The component's tensors under foreign names, then those that it carries."""
        infos = {}
        for entry in entries:
            stored = self.stored[entry.target]
            for name in entry.sources:
                infos[name] = TensorInfo(entry.source_shape(stored.shape), np.dtype(stored.dtype), self.directory)
        file = self.carried(f"{component}.safetensors")
        kept = SafetensorsFile(file) if file is not None else None
        infos |= {} if kept is None else kept.infos

        def stream() -> Iterator[tuple[str, np.ndarray]]:
            for batch in self._batches(entries):
                yield from self._unpacked(batch, merge_adapter)
            for name in kept.infos if kept is not None else ():
                yield name, kept.read(name)

        return Weights(infos, stream)

    def _batches(self, entries: list[Entry]) -> Iterator[list[Entry]]:
        batch, size = [], 0
        for entry in entries:
            nbytes = _nbytes(self.stored[entry.target])
            if batch and size + nbytes > _BATCH_BYTES:
                yield batch
                batch, size = [], 0
            batch.append(entry)
            size += nbytes
        if batch:
            yield batch

    def _unpacked(self, batch: list[Entry], merge_adapter: bool) -> Iterator[tuple[str, np.ndarray]]:
        values = read_parameters(self.directory, [entry.target for entry in batch])
        for entry in batch:
            value = values.pop(entry.target)
            if merge_adapter:
                value = self._merged(entry.target, value)
            yield from entry.unpack(value)

    def _merged(self, path: str, kernel: np.ndarray) -> np.ndarray:
        """The parameter with its adapter, if it has one, merged into it in place; one layer at a time."""
        module = path.rsplit(".", 1)[0]
        names = [f"{module}.{leaf}" for leaf in ("lora_a", "lora_b", "magnitude")]
        if not path.endswith(".kernel") or names[0] not in self.stored:
            return kernel
        parts = read_parameters(self.directory, [name for name in names if name in self.stored])
        a, b, magnitude = (parts.get(name) for name in names)
        for i in range(len(kernel)):
            row = None if magnitude is None else magnitude[i]
            kernel[i] = merged_kernel(_StoredLinear(kernel[i], a[i], b[i], row, self.config.adapter.scale))
            if not np.isfinite(kernel[i]).all():
                raise CheckpointError(
                    [f"{self.directory}: {path}, layer {i}: with its adapter merged it is not finite"]
                )
        return kernel


class _StoredLinear(NamedTuple):
    """One adapted layer as `merged_kernel` reads it."""

    kernel: np.ndarray
    lora_a: np.ndarray
    lora_b: np.ndarray
    magnitude: np.ndarray | None
    scale: float


def _nbytes(stored) -> int:
    return int(np.prod(stored.shape, dtype=np.int64)) * stored.dtype.itemsize
