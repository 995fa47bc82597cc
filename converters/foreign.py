"""A VIRTUE in other people's files, opened: its geometry, and per component the table that maps its tensors."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters import adapter, connector, qwen2_vl, sam2
from converters.errors import CheckpointError, refuse
from converters.rules import Entry, LeftOut, expand
from converters.sources import Source, open_folder, open_source
from virtue_jax.config import AdapterConfig, Compat, Sam2Config, TextConfig, VirtueConfig, VisionConfig


@dataclass(frozen=True)
class Component:
    """One checkpoint and its table."""

    name: str
    source: Source
    entries: list[Entry]
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class ForeignVirtue:
    """config, components to read, and the files beside the weights that a model directory keeps.

    carried_files: {name in `carried/`: file}.
    """

    config: VirtueConfig
    components: list[Component]
    processor_files: list[Path]
    carried_files: dict[str, Path]


def open_virtue(
    *,
    vlm: Path,
    sam2_file: Path,
    connector_file: Path | None = None,
    adapter_folder: Path | None = None,
    sam2_config: Path | None = None,
    processor_folder: Path | None = None,
    compat: Compat | None = None,
) -> ForeignVirtue:
    """Opens every file and reads the geometry; reads no tensor but a tied `lm_head`.

    Args:
        vlm: Hugging Face folder of Qwen2-VL, or of a merged VIRTUE.
        connector_file: None = a fresh connector, which is then in no component.
        processor_folder: where tokenizer and processor files are, if not in `vlm`.
        compat: None = "released" where there is a trained connector, else "paper".

    Raises:
        CheckpointError: files that cannot be opened or understood; everything wrong with all of them.
    """
    opened, problems = {}, []
    wanted: dict[str, Callable] = {
        "vlm": lambda: open_folder(vlm, qwen2_vl.published_name),
        "vlm_config": lambda: qwen2_vl.read_config(Path(vlm) / "config.json"),
        "sam2": lambda: open_source(sam2_file),
    }
    if connector_file is not None:
        wanted["connector"] = lambda: open_source(connector_file)
    if adapter_folder is not None:
        wanted["adapter"] = lambda: open_source(adapter.find_file(adapter_folder), adapter.published_name)
        wanted["adapter_config"] = lambda: adapter.read_config(Path(adapter_folder) / adapter.CONFIG_NAME)
    for key, read in wanted.items():
        _collect(read, key, opened, problems)
    refuse(problems)
    return _assemble(opened, Path(vlm), Path(sam2_file), adapter_folder, sam2_config, processor_folder, compat)


def _collect(read: Callable, key: str, results: dict, problems: list[str]) -> None:
    try:
        results[key] = read()
    except CheckpointError as error:
        problems += error.problems
    except OSError as error:
        problems.append(f"{error.filename}: {error.strerror}")


def _assemble(opened, vlm, sam2_file, adapter_folder, sam2_config, processor_folder, compat) -> ForeignVirtue:
    told, problems = {}, []
    vlm_source, sam2_source = opened["vlm"], opened["sam2"]
    sam2_config = sam2_config or _yaml_beside(sam2_file)
    has_head = qwen2_vl.LM_HEAD in vlm_source.infos
    vlm_config, vlm_file = opened["vlm_config"], vlm / "config.json"
    _collect(lambda: qwen2_vl.read_geometry(vlm_config, vlm_file, has_lm_head=has_head), "qwen", told, problems)
    _collect(lambda: sam2.read_geometry(sam2_source.infos, str(sam2_file), sam2_config), "sam2", told, problems)
    _collect(lambda: _points_per_side(vlm_config, vlm_file), "points", told, problems)
    if "adapter" in opened:
        file = Path(adapter_folder) / adapter.CONFIG_NAME
        infos, values = opened["adapter"].infos, opened["adapter_config"]
        _collect(lambda: adapter.read_geometry(values, file, infos), "adapter", told, problems)
    refuse(problems)
    vision, text = told["qwen"]
    config = VirtueConfig(
        sam2=told["sam2"],
        vision=vision,
        text=text,
        adapter=told.get("adapter"),
        compat=compat or (Compat.released() if "connector" in opened else Compat.paper()),
        points_per_side=told["points"],
    )
    carried = {
        "config.json": vlm_file,
        "generation_config.json": vlm / "generation_config.json",
        "sam2.yaml": sam2_config,
    }
    if adapter_folder is not None:
        carried[adapter.CONFIG_NAME] = Path(adapter_folder) / adapter.CONFIG_NAME
    processor = Path(processor_folder or vlm)
    return ForeignVirtue(
        config,
        _components(opened, told["sam2"], vision, text, told.get("adapter")),
        [processor / name for name in qwen2_vl.PROCESSOR_FILES if (processor / name).is_file()],
        {name: Path(file) for name, file in carried.items() if file is not None and Path(file).is_file()},
    )


def _components(
    opened: dict, sam2_config: Sam2Config, vision: VisionConfig, text: TextConfig, adapter_config: AdapterConfig | None
) -> list[Component]:
    vlm = opened["vlm"]
    components = [
        Component("sam2", opened["sam2"], expand(sam2.rules(sam2_config)), sam2.LEFT_OUT),
        Component("vlm", vlm, expand(qwen2_vl.rules(vision, text)), qwen2_vl.left_out(text)),
    ]
    if "connector" in opened:
        components.append(Component("connector", opened["connector"], expand(connector.RULES)))
    if adapter_config is not None:
        entries = expand(adapter.rules(adapter_config, text.num_hidden_layers))
        components.append(Component("adapter", opened["adapter"], entries))
    return components


def tied_head_problems(component: Component, text: TextConfig) -> list[str]:
    """What is wrong with a Qwen2-VL's `lm_head`: a tied one must equal the embedding, an untied one must be there."""
    infos, head, embedding = component.source.infos, qwen2_vl.LM_HEAD, qwen2_vl.EMBEDDING
    if not text.tie_word_embeddings:
        return (
            [] if head in infos else [f"{component.source.where}: missing tensor {head} (the embeddings are not tied)"]
        )
    if head not in infos or embedding not in infos:
        return []
    one, other = component.source.read(head), component.source.read(embedding)
    if (
        one.dtype == other.dtype
        and one.shape == other.shape
        and np.array_equal(one.view(np.uint8), other.view(np.uint8))
    ):
        return []
    said = f"config.json ties it to {embedding}"
    return [f"{infos[head].file}: tensor {head} differs from {embedding}, but {said}: set tie_word_embeddings to false"]


def _points_per_side(config: dict, file: Path) -> int:
    said = config.get("virtue_sam")
    if said is None:
        return next(f.default for f in dataclasses.fields(VirtueConfig) if f.name == "points_per_side")
    points = said.get("points_per_side") if isinstance(said, dict) else None
    if not isinstance(points, int) or points < 1:
        raise CheckpointError([f"{file}: virtue_sam.points_per_side is {points!r}, expected a positive integer"])
    if said.get("enabled") is False:
        raise CheckpointError([f"{file}: virtue_sam.enabled is false: this model has no segmentation tokens"])
    return points


def _yaml_beside(sam2_file: Path) -> Path | None:
    beside = sam2_file.with_suffix(".yaml")
    return beside if beside.is_file() else None
