"""`python -m converters export`: a model directory -> the authors' formats, tensor by tensor.

Without merging: `vlm/` (Hugging Face), `adapter/` (PEFT), the connector's `.pth`, `sam2.pt` and `sam2.yaml`. Merged:
the authors' Hugging Face folder itself, with the connector and SAM-2 beside its weights.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console

from converters import adapter, connector, hf_config, qwen2_vl, sam2
from converters.errors import CheckpointError, refuse
from converters.progress import byte_progress
from converters.rules import Entry, expand
from converters.safetensors_file import SafetensorsFile, TensorInfo, write_safetensors
from converters.sam2_yaml import sam2_yaml
from converters.torch_file import save_torch
from virtue_jax.checkpoint import CARRIED, load_config, parameter_shapes, read_parameter, stored_parameters
from virtue_jax.config import VirtueConfig
from virtue_jax.models.lora import merged_kernel
from virtue_jax.new_directory import new_directory

SHARD_BYTES = 5_000_000_000  # as transformers splits


@dataclass(frozen=True)
class ExportRequest:
    """What `export` was asked for. adapter_names: "published", "current" or "both", see `adapter.current_name`."""

    model: Path
    out: Path
    merge_adapter: bool = False
    adapter_names: str = "both"
    overwrite: bool = False


class Weights(NamedTuple):
    """The tensors of one output file or folder, in the order in which `stream` yields them."""

    infos: dict[str, TensorInfo]
    stream: Callable[[], Iterator[tuple[str, np.ndarray]]]


def run(request: ExportRequest, console: Console | None = None, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes `request.out`, which appears whole at the end or not at all.

    Raises:
        FileNotFoundError, ValueError: `request.model` is not a whole model directory.
        FileExistsError, OSError: `request.out` exists, or cannot be written.
    """
    console = console or Console(file=sys.stderr)
    model = _Model(Path(request.model))
    with new_directory(request.out, overwrite=request.overwrite) as folder:
        vlm = folder if request.merge_adapter else folder / "vlm"
        vlm.mkdir(exist_ok=True)
        total = sum(x.size * x.dtype.itemsize for x in model.stored.values()) + model.carried_bytes()
        with byte_progress("exporting", total, console) as progress:
            _write_connector(model, folder, progress)
            _write_sam2(model, folder, progress)
            if model.config.adapter is not None and not request.merge_adapter:
                _write_adapter(model, folder / "adapter", request.adapter_names, progress)
            _write_vlm(model, vlm, request.merge_adapter, shard_bytes, progress)
    console.print(f"wrote {request.out}", highlight=False, soft_wrap=True)


class _Model:
    """A model directory being read, with what it carries."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.config: VirtueConfig = load_config(directory)
        self.stored = stored_parameters(directory)
        shapes = parameter_shapes(self.config)
        problems = [
            f"{directory}: missing parameter {path} {shapes[path]}" for path in sorted(set(shapes) - set(self.stored))
        ]
        problems += [f"{directory}: unknown parameter {path}" for path in sorted(set(self.stored) - set(shapes))]
        problems += [
            f"{directory}: parameter {path} has shape {self.stored[path].shape}, expected {shapes[path]}"
            for path in sorted(set(shapes) & set(self.stored))
            if self.stored[path].shape != shapes[path]
        ]
        refuse(problems)

    def carried(self, name: str) -> Path | None:
        file = self.directory / CARRIED / name
        return file if file.is_file() else None

    def carried_bytes(self) -> int:
        return sum(file.stat().st_size for file in (self.directory / CARRIED).glob("*.safetensors"))

    def read(self, path: str) -> np.ndarray:
        return read_parameter(self.directory, path)

    def weights(self, component: str, entries: list[Entry], read: Callable[[str], np.ndarray] | None = None) -> Weights:
        """The component's tensors under foreign names, then those it carries."""
        read = read or self.read
        infos = {}
        for entry in entries:
            stored = self.stored[entry.target]
            for name in entry.sources:
                shape, dtype = entry.source_shape(stored.shape), np.dtype(stored.dtype)
                infos[name] = TensorInfo(shape, dtype, self.directory)
        file = self.carried(f"{component}.safetensors")
        kept = SafetensorsFile(file) if file is not None else None
        infos |= {} if kept is None else kept.infos

        def stream() -> Iterator[tuple[str, np.ndarray]]:
            for entry in entries:
                yield from entry.unpack(read(entry.target))
            for name in kept.infos if kept is not None else ():
                yield name, kept.read(name)

        return Weights(infos, stream)


def _counted(pairs: Iterable[tuple[str, np.ndarray]], progress: Callable[[int], None]) -> Iterator:
    for name, array in pairs:
        yield name, array
        progress(array.nbytes)


def _write_connector(model: _Model, folder: Path, progress: Callable[[int], None]) -> None:
    parts: dict[str, dict] = {}
    for name, array in _counted(model.weights("connector", expand(connector.RULES)).stream(), progress):
        outer, inner = name.split(".", 1)
        parts.setdefault(outer, {})[inner] = array
    save_torch(folder / connector.FILE_NAME, parts)


def _write_sam2(model: _Model, folder: Path, progress: Callable[[int], None]) -> None:
    weights = model.weights("sam2", expand(sam2.rules(model.config.sam2)))
    save_torch(folder / "sam2.pt", {"model": dict(_counted(weights.stream(), progress))})
    given = model.carried("sam2.yaml")
    text = given.read_text() if given is not None else sam2_yaml(model.config.sam2, weights.infos)
    (folder / "sam2.yaml").write_text(text)


def _write_adapter(model: _Model, folder: Path, names: str, progress: Callable[[int], None]) -> None:
    folder.mkdir()
    entries = expand(adapter.rules(model.config.adapter, model.config.text.num_hidden_layers))
    weights = model.weights("adapter", entries)
    spelt = {
        "published": [adapter.stored_name],
        "current": [adapter.current_name],
        "both": [adapter.stored_name, adapter.current_name],
    }[names]
    infos = {spell(name): (info.shape, info.dtype) for name, info in weights.infos.items() for spell in spelt}
    pairs = _counted(weights.stream(), progress)
    renamed = ((spell(name), array) for name, array in pairs for spell in spelt)
    write_safetensors(folder / adapter.FILE_NAMES[0], infos, renamed)
    text = adapter.config_text(model.config.adapter, model.carried(adapter.CONFIG_NAME), "../vlm")
    (folder / adapter.CONFIG_NAME).write_text(text)


def _write_vlm(model: _Model, folder: Path, merged: bool, shard_bytes: int, progress: Callable[[int], None]) -> None:
    config = model.config
    read = model.read
    if merged and config.adapter is not None:
        read = lambda path: _merged(model, path)  # noqa: E731
    weights = model.weights("vlm", expand(qwen2_vl.rules(config.vision, config.text)), read)
    _write_shards(folder, weights, shard_bytes, progress)
    for name in qwen2_vl.PROCESSOR_FILES:
        if (model.directory / name).is_file():
            shutil.copyfile(model.directory / name, folder / name)
    if (generation := model.carried("generation_config.json")) is not None:
        shutil.copyfile(generation, folder / generation.name)
    dtype = np.dtype(model.stored["text.embed_tokens.embedding"].dtype).name
    values = hf_config.vlm_config(config, model.carried("config.json"), dtype, merged=merged)
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")


def _write_shards(folder: Path, weights: Weights, shard_bytes: int, progress: Callable[[int], None]) -> None:
    shards = _shards(weights.infos, shard_bytes)
    stream = _counted(weights.stream(), progress)
    names = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    )
    for name, shard in zip(names, shards, strict=True):
        infos = {tensor: (info.shape, info.dtype) for tensor, info in shard.items()}
        write_safetensors(folder / name, infos, islice(stream, len(shard)))
    if len(shards) > 1:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(info.nbytes for info in weights.infos.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(infos: dict[str, TensorInfo], shard_bytes: int) -> list[dict[str, TensorInfo]]:
    shards: list[dict[str, TensorInfo]] = [{}]
    size = 0
    for name, info in infos.items():
        if shards[-1] and size + info.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = info
        size += info.nbytes
    return shards


class _StoredLinear(NamedTuple):
    """One adapted layer as `merged_kernel` reads it."""

    kernel: np.ndarray
    lora_a: np.ndarray
    lora_b: np.ndarray
    magnitude: np.ndarray | None
    scale: float


def _merged(model: _Model, path: str) -> np.ndarray:
    """The parameter with its adapter, if it has one, merged in; one layer at a time."""
    module = path.rsplit(".", 1)[0]
    if not path.endswith(".kernel") or f"{module}.lora_a" not in model.stored:
        return model.read(path)
    kernel, a, b = (model.read(f"{module}.{name}") for name in ("kernel", "lora_a", "lora_b"))
    magnitude = model.read(f"{module}.magnitude") if f"{module}.magnitude" in model.stored else [None] * len(kernel)
    scale = model.config.adapter.scale
    for layer in range(len(kernel)):
        merged = merged_kernel(_StoredLinear(kernel[layer], a[layer], b[layer], magnitude[layer], scale))
        kernel[layer] = np.asarray(jax.device_get(merged))
        if not np.isfinite(kernel[layer]).all():
            raise CheckpointError(
                [f"{model.directory}: {path}, layer {layer}: merging its adapter gives NaN or infinity"]
            )
    return kernel
