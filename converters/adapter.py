"""PEFT adapters (LoRA, DoRA): which modules they adapt, with which numbers, and their weight table."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from converters import qwen2_vl
from converters.adapter_scaling import UniformAdapter, uniform
from converters.errors import CheckpointError, Problems, refuse
from converters.mapped_file import TensorInfo
from converters.rules import Rule, same, tensor, transposed
from converters.sources import Source, open_source
from virtue_jax.config import AdapterConfig

CONFIG_NAME = "adapter_config.json"
FILE_NAMES = ("adapter_model.safetensors", "adapter_model.bin")  # in the order in which PEFT looks for them
PREFIX = "base_model.model."
MERGED_INSTEAD = (
    "merge the adapter into its base with PEFT (merge_and_unload), save that model and import it with --vlm, "
    "without --adapter"
)

_KIND = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn"}
_KIND |= {"gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp"}

# Keys of adapter_config.json that do not change what the adapter computes, or that are read. `target_modules` is one:
# PEFT drops targets that match nothing without a word, so only the tensors tell which modules are adapted.
_UNDERSTOOD = {
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_dora",
    "bias",
    "peft_type",
    "init_lora_weights",
    "target_modules",
    "exclude_modules",
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
    "rank_pattern",
    "runtime_config",
    "use_rslora",
}
# PEFT's other initialisations also change the base weights, which an adapter alone does not carry.
_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal")


def published_name(name: str) -> str:
    """The published name of an adapter tensor, from it or from any other that PEFT writes: the naming is that of the
    model which the adapter was made on (`qwen2_vl.published_name`)."""
    name = qwen2_vl.published_name(name.removeprefix(PREFIX))
    return re.sub(r"\.lora_magnitude_vector\.weight$", ".lora_magnitude_vector", name)


def stored_name(name: str) -> str:
    """The inverse of `published_name`, as the authors' code names it."""
    return PREFIX + name


def current_name(name: str) -> str:
    """The inverse of `published_name`, as PEFT names it on a Qwen2-VL of transformers >= 4.52.

    PEFT only warns of tensors that it misses: there, an adapter under its published names alone does nothing.
    """
    return PREFIX + re.sub(r"^model\.", "model.language_model.", name)


def rules(config: AdapterConfig, layers: int) -> list[Rule]:
    """Published names (without PEFT's prefix) -> the adapter leaves beside the kernels of `text.layers`."""
    table = []
    for target in config.targets:
        module = f"{_KIND[target]}.{target}"
        source, to = f"model.layers.{{i}}.{module}", f"text.layers.{module}"
        table.append(Rule(f"{source}.lora_A.weight", f"{to}.lora_a", tensor(transposed), range(layers)))
        table.append(Rule(f"{source}.lora_B.weight", f"{to}.lora_b", tensor(transposed), range(layers)))
        if config.use_dora:
            table.append(Rule(f"{source}.lora_magnitude_vector", f"{to}.magnitude", tensor(same), range(layers)))
    return table


def open_adapter(folder: Path) -> tuple[Source | UniformAdapter, AdapterConfig]:
    """The tensors of a PEFT folder under published names, brought to one rank and one scale, and its numbers.

    Raises:
        CheckpointError: files that are absent or damaged, or an adapter that no `AdapterConfig` expresses.
    """
    problems, file = Problems(), Path(folder) / CONFIG_NAME
    source = problems.of(lambda: open_source(find_file(folder), published_name))
    values = problems.of(read_config, file)
    problems.refuse()
    source.unused = tuple(
        other for name in FILE_NAMES if (other := Path(folder) / name).is_file() and other != source.where
    )
    return uniform(source, values, file, read_geometry(values, file, source.infos))


def find_file(folder: Path) -> Path:
    """The adapter's weights in `folder`: safetensors before .bin.

    Raises:
        CheckpointError: neither is there.
    """
    for name in FILE_NAMES:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise CheckpointError([f"{folder}: no adapter weights: neither {' nor '.join(FILE_NAMES)} is there"])


def read_config(file: Path) -> dict:
    """`adapter_config.json` as it stands.

    Raises:
        CheckpointError: absent, or not a JSON object.
    """
    try:
        config = json.loads(Path(file).read_text())
        config.items()
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError([f"{file}: expected PEFT's adapter_config.json ({error})"]) from error
    return config


def read_geometry(config: dict, file: Path, infos: Mapping[str, TensorInfo]) -> AdapterConfig:
    """rank, alpha, dropout and DoRA from adapter_config.json; the adapted modules from the tensors (published names).

    Raises:
        CheckpointError: PEFT options that this implementation does not have, missing keys, or no adapter tensors.
    """
    problems = [
        f"{file}: {key} = {value!r} is not supported; {MERGED_INSTEAD}"
        for key, value in sorted(config.items())
        if key not in _UNDERSTOOD and value
    ]
    for key, allowed in [("peft_type", ("LORA",)), ("bias", ("none", None)), ("init_lora_weights", _INITIALISATIONS)]:
        if config.get(key, allowed[0]) not in allowed:
            problems.append(
                f"{file}: {key} = {config[key]!r} is not supported, expected one of {allowed}; {MERGED_INSTEAD}"
            )
    for key, kinds in [("r", int), ("lora_alpha", (int, float))]:
        value = config.get(key)
        if not isinstance(value, kinds) or isinstance(value, bool) or value <= 0:
            problems.append(f"{file}: {key} is {value!r}, expected a positive number")
    modules = {m[1] for name in infos if (m := re.fullmatch(r"model\.layers\.\d+\.(.+?)\.lora_.*", name))}
    targets = tuple(name for name, kind in _KIND.items() if f"{kind}.{name}" in modules)
    if not targets:
        problems.append(
            f"{file}: its weights hold no adapter of a language model layer; they hold {sorted(infos)[:5]} ..."
        )
    refuse(problems)
    return AdapterConfig(
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        dropout=float(config.get("lora_dropout") or 0.0),
        use_dora=bool(config.get("use_dora", False)),
        targets=targets,
    )


def config_text(config: AdapterConfig, carried: Path | None, base: str) -> str:
    """The exported adapter_config.json: the one the adapter came with if it still says the same, else a new one.

    base: base_model_name_or_path of a new one.
    """
    if carried is not None:
        text = carried.read_text()
        if _agrees(json.loads(text), config):
            return text
    return json.dumps(_peft_config(config, base), indent=2) + "\n"


def _agrees(values: dict, config: AdapterConfig) -> bool:
    dropout, dora = values.get("lora_dropout") or 0.0, values.get("use_dora", False)
    stated = (values.get("r"), values.get("lora_alpha"), dropout, dora)
    named = values.get("target_modules")
    if values.get("use_rslora") or values.get("rank_pattern") or values.get("alpha_pattern"):
        return False  # the model has one rank and one scale, see `adapter_scaling`
    same_modules = isinstance(named, list) and set(named) & set(_KIND) == set(config.targets)
    return same_modules and stated == (config.rank, config.alpha, config.dropout, config.use_dora)


def _peft_config(config: AdapterConfig, base: str) -> dict:
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": "gaussian",
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.rank,
        "target_modules": sorted(config.targets),
        "task_type": None,
        "use_dora": config.use_dora,
        "use_rslora": False,
    }
