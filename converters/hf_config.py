"""The `config.json` of an exported Qwen2-VL: the one it came with, or one written from the geometry."""

import copy
import json
from pathlib import Path

from virtue_jax.config import VirtueConfig


def vlm_config(config: VirtueConfig, carried: Path | None, dtype: str, *, merged: bool) -> dict:
    """`config.json` as a dict. dtype: of the exported weights. merged: adds what the authors' export adds."""
    values = json.loads(carried.read_text()) if carried is not None else _from_geometry(config)
    values = copy.deepcopy(values)
    values["tie_word_embeddings"] = config.text.tie_word_embeddings
    for place in (values, values.get("text_config"), values.get("vision_config")):
        for key in ("torch_dtype", "dtype"):
            if isinstance(place, dict) and key in place:
                place[key] = dtype
    if merged or "virtue_sam" in values or config.points_per_side != _default_points():
        values["virtue_sam"] = {
            "feature_levels": 2,
            **values.get("virtue_sam", {}),
            "enabled": True,
            "config_path": "sam2.yaml",
            "checkpoint": "sam2.pt",
            "points_per_side": config.points_per_side,
        }
    return values


def _default_points() -> int:
    return VirtueConfig.__dataclass_fields__["points_per_side"].default


def _from_geometry(config: VirtueConfig) -> dict:
    text, vision = config.text, config.vision
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "image_token_id": text.image_token_id,
        "initializer_range": 0.02,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": 32768,
        "model_type": "qwen2_vl",
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": text.num_hidden_layers,
        "num_key_value_heads": text.num_key_value_heads,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_scaling": {"type": "mrope", "mrope_section": list(text.mrope_section)},
        "rope_theta": text.rope_theta,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": vision.depth,
            "embed_dim": vision.embed_dim,
            "hidden_size": vision.hidden_size,
            "in_chans": vision.in_channels,
            "in_channels": vision.in_channels,
            "mlp_ratio": int(vision.mlp_ratio) if vision.mlp_ratio == int(vision.mlp_ratio) else vision.mlp_ratio,
            "num_heads": vision.num_heads,
            "patch_size": vision.patch_size,
            "spatial_merge_size": vision.spatial_merge_size,
            "spatial_patch_size": vision.patch_size,
            "temporal_patch_size": vision.temporal_patch_size,
        },
        "vision_end_token_id": text.vision_end_token_id,
        "vision_start_token_id": text.vision_start_token_id,
        "vocab_size": text.vocab_size,
    }
