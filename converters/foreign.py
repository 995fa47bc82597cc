"""A VIRTUE in other people's files, opened: its geometry, and per component the table that maps its tensors."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from converters import adapter, connector, pixel_limits, quantised, qwen2_vl, sam2, sam2_transformers
from converters.adapter_scaling import UniformAdapter
from converters.errors import CheckpointError, Problems, refuse
from converters.rules import Entry, LeftOut, expand
from converters.sources import Source, equal_bits, open_folder, open_source
from virtue_jax.config import AdapterConfig, Compat, Sam2Config, TextConfig, VirtueConfig, VisionConfig


@dataclass(frozen=True)
class Component:
    """One checkpoint and its table."""

    name: str
    source: Source | UniformAdapter
    entries: list[Entry]
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class ForeignVirtue:
    """config, components to read, and the files beside the weights that a model directory keeps.

    carried_files: {name in `carried/`: file}. notes: lines on what lies there and is not taken.
    """

    config: VirtueConfig
    components: list[Component]
    processor_files: list[Path]
    carried_files: dict[str, Path]
    notes: list[str]


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
        sam2_file: Meta's file, or a folder of `transformers`' Sam2Model.
        connector_file: None = a fresh connector, which is then in no component.
        processor_folder: where tokenizer and processor files are, if not in `vlm`.
        compat: None = "released" where there is a trained connector, else "paper".

    Raises:
        CheckpointError: files that cannot be opened or understood; everything wrong with all of them. Quantised weights
            alone are an error of one line.
    """
    vlm, processor = Path(vlm), Path(processor_folder or vlm)
    refuse(filter(None, [quantised.by_config(vlm)]))
    problems = Problems()
    source = problems.of(open_folder, vlm, qwen2_vl.published_name)
    sam = problems.of(sam2_transformers.open_sam2, sam2_file)
    joined = problems.of(open_source, connector_file) if connector_file is not None else None
    adapted = problems.of(adapter.open_adapter, adapter_folder) if adapter_folder is not None else None
    sources = [source, *(opened[0] for opened in (sam, adapted) if opened is not None), joined]
    refuse([line for opened in sources if opened is not None and (line := quantised.by_tensors(opened.infos))][:1])
    qwen = problems.of(_read_qwen, vlm, source)
    problems.refuse()
    sam2_config = sam2_config or _yaml_beside(Path(sam2_file))
    geometry = problems.of(_sam2_geometry, *sam, str(sam2_file), sam2_config)
    limits = problems.of(pixel_limits.read_limits, processor, qwen.vision)
    problems.refuse()
    behaviour = compat or (Compat.paper() if joined is None else Compat.released())
    config = _config(geometry, qwen, None if adapted is None else adapted[1], behaviour, limits[0])
    components = _components(config, source, sam, joined, adapted)
    carried = _carried_files(vlm, sam2_config, adapter_folder)
    files = [processor / name for name in qwen2_vl.PROCESSOR_FILES if (processor / name).is_file()]
    notes = [*_weight_notes(components), *_folder_notes(vlm, adapter_folder, source, qwen.text), *limits[1]]
    return ForeignVirtue(config, components, files, carried, notes)


class _Qwen(NamedTuple):
    """What the config.json of a Qwen2-VL or a merged VIRTUE says."""

    vision: VisionConfig
    text: TextConfig
    points_per_side: int


def _config(sam2: Sam2Config, qwen: _Qwen, lora: AdapterConfig | None, compat: Compat, limits: dict) -> VirtueConfig:
    side = qwen.points_per_side
    return VirtueConfig(sam2, qwen.vision, qwen.text, lora, compat, points_per_side=side, **limits)


def _read_qwen(vlm: Path, source: Source | None) -> _Qwen | None:
    file = vlm / "config.json"
    values = qwen2_vl.read_config(file)
    if source is None:
        return None
    problems = Problems(qwen2_vl.tower_problems(source.infos, source.where))
    has_head = qwen2_vl.LM_HEAD in source.infos
    towers = problems.of(qwen2_vl.read_geometry, values, file, has_lm_head=has_head)
    points = problems.of(_points_per_side, values, file)
    problems.refuse()
    return _Qwen(*towers, points)


def _sam2_geometry(source: Source, folder_config: Path | None, where: str, yaml: Path | None) -> Sam2Config:
    if folder_config is None:
        return sam2.read_geometry(source.infos, where, yaml)
    if yaml is not None:
        remedy = f"leave it out: {where} is a Sam2Model, whose sizes are in its config.json"
        raise CheckpointError([f"{yaml}: goes with Meta's file; {remedy}"])
    return sam2_transformers.read_geometry(source.infos, where, folder_config)


def _components(config: VirtueConfig, source: Source, sam, joined, adapted) -> list[Component]:
    sam_source, folder_config = sam
    table = sam2.rules(config.sam2, point_table=folder_config is not None)
    components = [
        Component("sam2", sam_source, expand(table), sam2.LEFT_OUT),
        Component("vlm", source, expand(qwen2_vl.rules(config.vision, config.text)), qwen2_vl.left_out(config.text)),
    ]
    if joined is not None:
        components.append(Component("connector", joined, expand(connector.RULES)))
    if adapted is not None:
        entries = expand(adapter.rules(config.adapter, config.text.num_hidden_layers))
        components.append(Component("adapter", adapted[0], entries))
    return components


def _carried_files(vlm: Path, sam2_config: Path | None, adapter_folder: Path | None) -> dict[str, Path]:
    files = {name: vlm / name for name in ("config.json", "generation_config.json")} | {"sam2.yaml": sam2_config}
    if adapter_folder is not None:
        files[adapter.CONFIG_NAME] = Path(adapter_folder) / adapter.CONFIG_NAME
    return {name: Path(file) for name, file in files.items() if file is not None and Path(file).is_file()}


def _weight_notes(components: list[Component]) -> Iterator[str]:
    for component in components:
        source = component.source
        if source.unused:
            names = ", ".join(file.name for file in source.unused)
            yield f"{component.name}: not read, beside {source.where}: {names}"
        yield from source.notes


def _folder_notes(vlm: Path, adapter_folder: Path | None, source: Source, text: TextConfig) -> Iterator[str]:
    if adapter_folder is None and (vlm / adapter.CONFIG_NAME).is_file():
        yield f"vlm: {vlm} holds an adapter too, which is not applied; give it with --adapter {vlm}"
    if not text.tie_word_embeddings and qwen2_vl.LM_HEAD not in source.infos:
        yield f"vlm: {source.where} has no {qwen2_vl.LM_HEAD}, as AutoModel saves it; nor will what is exported"


def tied_head_problems(component: Component, text: TextConfig) -> list[str]:
    """What is wrong with a Qwen2-VL's `lm_head`, if it has one: a tied one must equal the embedding."""
    infos, head, embedding = component.source.infos, qwen2_vl.LM_HEAD, qwen2_vl.EMBEDDING
    if not text.tie_word_embeddings or head not in infos or embedding not in infos:
        return []
    if equal_bits(component.source.read(head), component.source.read(embedding)):
        return []
    tied = f"config.json ties it to {embedding}"
    return [f"{infos[head].file}: tensor {head} differs from {embedding}, but {tied}: set tie_word_embeddings to false"]


def _points_per_side(config: dict, file: Path) -> int:
    settings = config.get("virtue_sam")
    if settings is None:
        return next(f.default for f in dataclasses.fields(VirtueConfig) if f.name == "points_per_side")
    points = settings.get("points_per_side") if isinstance(settings, dict) else None
    if not isinstance(points, int) or points < 1:
        raise CheckpointError([f"{file}: virtue_sam.points_per_side is {points!r}, expected a positive integer"])
    if settings.get("enabled") is False:
        raise CheckpointError([f"{file}: virtue_sam.enabled is false: this model has no segmentation tokens"])
    return points


def _yaml_beside(sam2_file: Path) -> Path | None:
    beside = sam2_file.with_suffix(".yaml")
    return beside if beside.is_file() and not sam2_file.is_dir() else None
