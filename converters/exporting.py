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

import numpy as np
from rich.console import Console

from converters import adapter, connector, hf_config, pixel_limits, qwen2_vl, sam2
from converters.mapped_file import TensorInfo
from converters.progress import byte_progress
from converters.rules import expand
from converters.safetensors_file import write_safetensors
from converters.sam2_yaml import META_DECODER_HEADS, sam2_yaml
from converters.stored_model import StoredModel, Weights
from converters.torch_file import save_torch
from virtue_jax.atomic_files import new_directory, refuse_inputs

SHARD_BYTES = 5_000_000_000  # as transformers splits


@dataclass(frozen=True)
class ExportRequest:
    """What `export` was asked for. adapter_names: "published", "current" or "both", see `adapter.current_name`."""

    model: Path
    out: Path
    merge_adapter: bool = False
    adapter_names: str = "both"
    overwrite: bool = False


def run(request: ExportRequest, console: Console | None = None, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes `request.out`, which appears whole at the end or not at all.

    Raises:
        FileNotFoundError, ValueError: `request.model` is not a whole model directory.
        FileExistsError, OSError: `request.out` exists, holds the model, or cannot be written.
    """
    console = console or Console(file=sys.stderr)
    refuse_inputs(request.out, [request.model])
    model = StoredModel(Path(request.model))
    with new_directory(request.out, overwrite=request.overwrite) as folder:
        vlm = folder if request.merge_adapter else folder / "vlm"
        vlm.mkdir(exist_ok=True)
        with byte_progress("exporting", model.total_bytes(), console) as progress:
            _write_connector(model, folder, progress)
            _write_sam2(model, folder, progress)
            if model.config.adapter is not None and not request.merge_adapter:
                _write_adapter(model, folder / "adapter", request.adapter_names, progress)
            _write_vlm(model, vlm, request, shard_bytes, progress)
    if (heads := model.config.sam2.decoder_heads) != META_DECODER_HEADS:
        console.print(
            f"[yellow]Meta's code cannot run sam2.pt: it builds a mask decoder of {META_DECODER_HEADS} heads, this "
            f"model's has {heads}[/] (our own import reads the number from sam2.yaml)"
        )
    console.print(f"wrote {request.out}", highlight=False, soft_wrap=True)


def _counted(pairs: Iterable[tuple[str, np.ndarray]], progress: Callable[[int], None]) -> Iterator:
    for name, array in pairs:
        yield name, array
        progress(array.nbytes)


def _write_connector(model: StoredModel, folder: Path, progress: Callable[[int], None]) -> None:
    parts: dict[str, dict] = {}
    for name, array in _counted(model.weights("connector", expand(connector.RULES)).stream(), progress):
        outer, inner = name.split(".", 1)
        parts.setdefault(outer, {})[inner] = array
    save_torch(folder / connector.FILE_NAME, parts)


def _write_sam2(model: StoredModel, folder: Path, progress: Callable[[int], None]) -> None:
    weights = model.weights("sam2", expand(sam2.rules(model.config.sam2)))
    save_torch(folder / "sam2.pt", {"model": dict(_counted(weights.stream(), progress))})
    carried = model.carried("sam2.yaml")
    text = carried.read_text() if carried is not None else sam2_yaml(model.config.sam2, weights.infos)
    (folder / "sam2.yaml").write_text(text)


def _write_adapter(model: StoredModel, folder: Path, names: str, progress: Callable[[int], None]) -> None:
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


def _write_vlm(
    model: StoredModel, folder: Path, request: ExportRequest, shard_bytes: int, progress: Callable[[int], None]
) -> None:
    config, merged = model.config, request.merge_adapter
    weights = model.weights("vlm", expand(qwen2_vl.rules(config.vision, config.text)), merge_adapter=merged)
    _write_shards(folder, weights, shard_bytes, progress)
    for name in qwen2_vl.PROCESSOR_FILES:
        if (model.directory / name).is_file():
            shutil.copyfile(model.directory / name, folder / name)
    pixel_limits.write_limits(folder, config)
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
