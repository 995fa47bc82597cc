"""`python -m converters inspect PATH`: what a checkpoint is, its geometry, tensors and dtypes."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from converters import adapter, connector, qwen2_vl, sam2
from converters.errors import CheckpointError
from converters.safetensors_file import TensorInfo
from converters.sources import Source, open_folder, open_source
from virtue_jax.model_directory import CONFIG_FILE, PARAMS, load_config, read_head, stored_parameters

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Finding:
    """One checkpoint. geometry: {what: value}; notes: what could not be told, and why."""

    path: Path
    kind: str
    infos: Mapping[str, TensorInfo]
    geometry: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def run(path: Path, console: Console) -> None:
    """Prints every checkpoint found at `path`.

    Raises:
        CheckpointError: nothing there, nothing recognised, or damaged files.
    """
    for finding in inspect(Path(path)):
        _print(finding, console)


def inspect(path: Path) -> list[Finding]:
    """The checkpoints at `path`: a file, a folder in any of the formats, or an export with several of them."""
    if path.is_file():
        return [_inspect_file(path)]
    if not path.is_dir():
        raise CheckpointError([f"{path}: no such file or directory"])
    if (path / CONFIG_FILE).is_file():
        return [_inspect_model(path)]
    found = []
    if (path / adapter.CONFIG_NAME).is_file():
        found.append(_inspect_adapter(path))
    elif (path / "config.json").is_file():
        found.append(_inspect_vlm(path))
    inside = [child for child in sorted(path.iterdir()) if child.suffix in (".pt", ".pth")]
    found += [_inspect_file(child) for child in inside]
    for child in (path / "vlm", path / "adapter"):
        if child.is_dir():
            found += inspect(child)
    if not found:
        names = ", ".join(sorted(child.name for child in path.iterdir())[:10]) or "nothing"
        raise CheckpointError([f"{path}: no checkpoint in a format known here; it holds {names}"])
    return found


def _inspect_model(path: Path) -> Finding:
    head, config = read_head(path), load_config(path)
    infos = {
        name: TensorInfo(tuple(x.shape), np.dtype(x.dtype), path / PARAMS)
        for name, x in stored_parameters(path).items()
    }
    geometry = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)} | {
        "provenance": head["provenance"]
    }
    return Finding(path, "virtue_jax model directory", infos, geometry)


def _inspect_vlm(path: Path) -> Finding:
    config = qwen2_vl.read_config(path / "config.json")
    source = open_folder(path, qwen2_vl.published_name)
    has_head = qwen2_vl.LM_HEAD in source.infos
    geometry, notes = _told(lambda: qwen2_vl.read_geometry(config, path / "config.json", has_lm_head=has_head))
    values = {} if geometry is None else {"vision": geometry[0], "text": geometry[1]}
    merged = "virtue_sam" in config
    if merged:
        values["virtue_sam"] = config["virtue_sam"]
    kind = "merged VIRTUE (Hugging Face folder)" if merged else "Qwen2-VL (Hugging Face folder)"
    return Finding(path, kind, source.infos, values, notes)


def _inspect_adapter(path: Path) -> Finding:
    config = adapter.read_config(path / adapter.CONFIG_NAME)
    source = open_source(adapter.find_file(path), adapter.published_name)
    geometry, notes = _told(lambda: adapter.read_geometry(config, path / adapter.CONFIG_NAME, source.infos))
    values = {} if geometry is None else {"adapter": geometry}
    values["target_modules in its config"] = config.get("target_modules")
    return Finding(path, "PEFT adapter", source.infos, values, notes)


def _inspect_file(path: Path) -> Finding:
    if path.suffix not in _SUFFIXES:
        raise CheckpointError([f"{path}: not a checkpoint: expected a folder or one of {', '.join(_SUFFIXES)}"])
    source: Source = open_source(path)
    names = set(source.infos)
    if any(name.startswith("sam_prompt_encoder.") for name in names):
        beside = path.with_suffix(".yaml")
        yaml = beside if beside.is_file() else None
        geometry, notes = _told(lambda: sam2.read_geometry(source.infos, str(path), yaml))
        return Finding(path, "SAM-2 state dict", source.infos, {} if geometry is None else {"sam2": geometry}, notes)
    if any(name.startswith("sam2_reducer.") for name in names):
        return Finding(path, f"segmentation-language connector ({connector.FILE_NAME})", source.infos)
    if any(".lora_" in name for name in names):
        return Finding(path, f"weights of a PEFT adapter (its {adapter.CONFIG_NAME} tells the rest)", source.infos)
    if any(name.startswith(("visual.", "model.visual.")) for name in names):
        return Finding(
            path, "weights of a Qwen2-VL, or one shard of them (its config.json tells the rest)", source.infos
        )
    return Finding(path, "tensors of a kind not known here", source.infos)


def _told(read: Callable) -> tuple[object | None, tuple[str, ...]]:
    try:
        return read(), ()
    except CheckpointError as error:
        return None, tuple(error.problems)


def _print(finding: Finding, console: Console) -> None:
    infos = finding.infos
    values = sum(int(np.prod(info.shape, dtype=np.int64)) for info in infos.values())
    size = sum(info.nbytes for info in infos.values())
    files = len({info.file for info in infos.values()})
    console.print(f"[bold]{escape(str(finding.path))}[/]: {escape(finding.kind)}", highlight=False)
    place = f" in {files} files" if files > 1 else ""
    console.print(f"  {len(infos)} tensors{place}, {values:,} values, {size / 1e9:.3f} GB", highlight=False)
    for dtype, count in sorted(Counter(info.dtype.name for info in infos.values()).items()):
        console.print(f"  {dtype}: {count} tensors", highlight=False)
    for key, value in finding.geometry.items():
        console.print(f"  {key}: {escape(str(value))}", highlight=False)
    for note in finding.notes:
        console.print(f"  [yellow]{escape(note)}[/]", highlight=False)
    console.print(_table(infos))


def _table(infos: Mapping[str, TensorInfo]) -> Table:
    """Tensors of one name but for layer numbers, one shape and one dtype share a row."""
    rows: Counter = Counter()
    for name, info in infos.items():
        rows[re.sub(r"(?<=\.)\d+(?=\.)", "*", name), info.shape, info.dtype.name] += 1
    table = Table("tensor", "count", "shape", "dtype", "values")
    for column in (1, 4):
        table.columns[column].justify = "right"
    for (name, shape, dtype), count in rows.items():
        total = count * int(np.prod(shape, dtype=np.int64))
        table.add_row(escape(name), str(count), escape(str(list(shape))), dtype, f"{total:,}")
    return table
