"""PEFT adapters (LoRA, DoRA): which modules they adapt, with which numbers, and their weight table."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from converters.errors import CheckpointError, refuse
from converters.rules import Rule, same, tensor, transposed
from converters.safetensors_file import TensorInfo
from virtue_jax.config import AdapterConfig

CONFIG_NAME = "adapter_config.json"
FILE_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."

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
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
    "runtime_config",
}
# PEFT's other initialisations also change the base weights, which an adapter alone does not carry.
_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal")


def published_name(name: str) -> str:
    """The published name of an adapter tensor, from it or from the module names of transformers >= 4.52."""
    name = name.removeprefix(PREFIX)
    name = re.sub(r"^model\.language_model\.", "model.", name)
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


def find_file(folder: Path) -> Path:
    """The adapter's weights in `folder`.

    Raises:
        CheckpointError: neither safetensors nor .bin is there.
    """
    for name in FILE_NAMES:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise CheckpointError([f"{folder}: no adapter weights: neither {' nor '.join(FILE_NAMES)} is there"])


def read_config(file: Path) -> dict:
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
        f"{file}: {key} = {value!r} is not supported"
        for key, value in sorted(config.items())
        if key not in _UNDERSTOOD and value
    ]
    for key, allowed in [("peft_type", ("LORA",)), ("bias", ("none", None)), ("init_lora_weights", _INITIALISATIONS)]:
        if config.get(key, allowed[0]) not in allowed:
            problems.append(f"{file}: {key} = {config[key]!r} is not supported, expected one of {allowed}")
    for key, kinds in [("r", int), ("lora_alpha", (int, float))]:
        if not isinstance(config.get(key), kinds) or config[key] <= 0:
            problems.append(f"{file}: {key} is {config.get(key)!r}, expected a positive number")
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
