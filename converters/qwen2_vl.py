"""Hugging Face's Qwen2-VL: `config.json` of every generation, weight table, every naming of the tensors."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from converters.errors import CheckpointError, refuse
from converters.rules import (
    LeftOut,
    Rule,
    embedding,
    linear,
    linear_without_bias,
    norm,
    rms_norm,
    tensor,
    video_patches,
)
from virtue_jax.config import TextConfig, VisionConfig

LM_HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"

# Tokenizer and processor files of a Hugging Face folder, kept so that a model directory stands alone.
PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)


def published_name(name: str) -> str:
    """The published name of a tensor ("model.layers.0...", "visual.blocks.0..."), from it or from any other.

    `transformers` names the tensors by its modules, which moved: from 4.52 on the language model is
    `model.language_model` and the vision tower `model.visual`, and without a head (`AutoModel`, `Qwen2VLModel`)
    `language_model` and `visual`; before, a language model without a head began at `layers`.
    """
    name = re.sub(r"^(model\.)?language_model\.", "model.", name)
    name = re.sub(r"^model\.visual\.", "visual.", name)
    return re.sub(r"^(layers|embed_tokens|norm)\.", r"model.\1.", name)


def tower_problems(names: Iterable[str], where: Path) -> list[str]:
    """The problem of a language model without its vision tower, as `AutoModel` saved it before transformers 4.52."""
    if EMBEDDING not in names or any(name.startswith("visual.") for name in names):
        return []
    return [f"{where}: no vision tower, only the language model (no tensor visual.*); give the whole model's folder"]


def rules(vision: VisionConfig, text: TextConfig) -> list[Rule]:
    """Published names -> `vision.*` and `text.*`."""
    return _vision_rules(vision) + _text_rules(text)


def left_out(text: TextConfig) -> tuple[LeftOut, ...]:
    """An embedder has no use for logits; a tied `lm_head` is the embedding once more, an untied one is carried."""
    reason = "a copy of the embedding" if text.tie_word_embeddings else "logits, which an embedder does not compute"
    return (LeftOut(re.escape(LM_HEAD), reason, carried=not text.tie_word_embeddings),)


def _vision_rules(config: VisionConfig) -> list[Rule]:
    blocks = range(config.depth)
    patches = video_patches(config.in_channels, config.patch_size)
    parts = [("norm1", norm), ("norm2", norm), ("attn.qkv", linear), ("attn.proj", linear)]
    parts += [("mlp.fc1", linear), ("mlp.fc2", linear)]
    return [
        Rule("visual.patch_embed.proj.weight", "vision.patch_embed.kernel", tensor(patches)),
        *(Rule(f"visual.blocks.{{i}}.{part}", f"vision.blocks.{part}", family, blocks) for part, family in parts),
        Rule("visual.merger.ln_q", "vision.merger.ln_q", norm),
        Rule("visual.merger.mlp.0", "vision.merger.fc1", linear),
        Rule("visual.merger.mlp.2", "vision.merger.fc2", linear),
    ]


def _text_rules(config: TextConfig) -> list[Rule]:
    layers = range(config.num_hidden_layers)
    parts = [(f"self_attn.{name}", linear) for name in ("q_proj", "k_proj", "v_proj")]
    parts.append(("self_attn.o_proj", linear_without_bias))
    parts += [(f"mlp.{name}", linear_without_bias) for name in ("gate_proj", "up_proj", "down_proj")]
    parts += [("input_layernorm", rms_norm), ("post_attention_layernorm", rms_norm)]
    return [
        Rule("model.embed_tokens", "text.embed_tokens", embedding),
        *(Rule(f"model.layers.{{i}}.{part}", f"text.layers.{part}", family, layers) for part, family in parts),
        Rule("model.norm", "text.norm", rms_norm),
    ]


def read_config(file: Path) -> dict:
    """`config.json` as it stands, of any generation of `transformers`.

    Raises:
        CheckpointError: absent, not JSON, or not a Qwen2-VL.
    """
    try:
        config = json.loads(Path(file).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError([f"{file}: expected the config.json of a Qwen2-VL ({error})"]) from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind == "qwen2_vl_text":
        line = f"{file}: model_type is {kind!r}, a language model without its vision tower; give the whole Qwen2-VL"
        raise CheckpointError([line])
    if kind != "qwen2_vl":
        raise CheckpointError([f"{file}: model_type is {kind!r}, expected 'qwen2_vl'"])
    return config


def read_geometry(config: dict, file: Path, *, has_lm_head: bool) -> tuple[VisionConfig, TextConfig]:
    """Both towers' geometry from a flat config.json, one with a nested text_config, or one of transformers 5.

    has_lm_head: decides whether the embeddings are tied where the config does not say.

    Raises:
        CheckpointError: keys missing, or features that this implementation does not have.
    """
    look = _Lookup(config, file)
    rope = look.optional("rope_parameters") or look.optional("rope_scaling") or {}
    look.expect("hidden_act", "silu")
    look.expect("use_sliding_window", False)
    kind = rope.get("rope_type", rope.get("type"))
    if kind not in (None, "default", "mrope"):
        look.problems.append(f"{file}: rope type {kind!r} is not supported, expected mrope")
    if "mrope_section" not in rope:
        look.problems.append(f"{file}: no mrope_section under rope_scaling or rope_parameters")
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "image_token_id", "vision_start_token_id", "vision_end_token_id")
    values = {name: look.required(name) for name in names}
    tied = config.get("tie_word_embeddings", look.optional("tie_word_embeddings"))
    vision = _vision_geometry(config.get("vision_config"), look, values["hidden_size"])
    refuse(look.problems)
    text = TextConfig(
        **values,
        mrope_section=tuple(rope["mrope_section"]),
        rope_theta=float(rope.get("rope_theta") or look.optional("rope_theta") or 1e6),
        rms_norm_eps=float(look.optional("rms_norm_eps") or 1e-6),
        tie_word_embeddings=not has_lm_head if tied is None else tied,
    )
    return vision, text


def _vision_geometry(config: dict | None, look: "_Lookup", hidden_size: int | None) -> VisionConfig | None:
    if not isinstance(config, dict):
        look.problems.append(f"{look.file}: no vision_config")
        return None
    missing = [name for name in ("depth", "embed_dim", "num_heads") if name not in config]
    look.problems += [f"{look.file}: vision_config has no {name}" for name in missing]
    if config.get("hidden_act", "quick_gelu") != "quick_gelu":
        look.problems.append(
            f"{look.file}: vision_config.hidden_act is {config['hidden_act']!r}, expected 'quick_gelu'"
        )
    if config.get("hidden_size", hidden_size) != hidden_size:
        look.problems.append(
            f"{look.file}: vision_config.hidden_size {config['hidden_size']} != hidden_size {hidden_size}"
        )
    if missing or hidden_size is None:
        return None
    return VisionConfig(
        depth=config["depth"],
        embed_dim=config["embed_dim"],
        num_heads=config["num_heads"],
        hidden_size=hidden_size,
        mlp_ratio=float(config.get("mlp_ratio", 4)),
        in_channels=config.get("in_channels", config.get("in_chans", 3)),
        patch_size=config.get("patch_size", 14),
        spatial_merge_size=config.get("spatial_merge_size", 2),
        temporal_patch_size=config.get("temporal_patch_size", 2),
    )


class _Lookup:
    """A key of the language model: in text_config where there is one and it says, else at the top level."""

    def __init__(self, config: dict, file: Path):
        self.text, self.top, self.file = config.get("text_config") or {}, config, file
        self.problems: list[str] = []

    def optional(self, key: str):
        value = self.text.get(key)
        return self.top.get(key) if value is None else value

    def required(self, key: str):
        value = self.optional(key)
        if not isinstance(value, int):
            self.problems.append(f"{self.file}: {key} is {value!r}, expected an integer")
            return None
        return value

    def expect(self, key: str, wanted) -> None:
        value = self.optional(key)
        if value is not None and value != wanted:
            self.problems.append(f"{self.file}: {key} is {value!r}, only {wanted!r} is supported")
