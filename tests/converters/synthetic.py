"""Foreign checkpoints made for tests: tensors of the right names and shapes, of any size, in any file format."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from converters.safetensors_file import write_safetensors

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def qwen_config(
    *, hidden: int, intermediate: int, layers: int, vocabulary: int, heads: int = 12, kv_heads: int = 2
) -> dict:
    """A flat config.json of a Qwen2-VL with a small vision tower."""
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "image_token_id": 5,
        "vision_start_token_id": 3,
        "vision_end_token_id": 4,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "torch_dtype": "bfloat16",
        "vision_config": {"depth": 1, "embed_dim": 32, "num_heads": 2, "in_chans": 3, "hidden_size": hidden},
    }


def qwen_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """{published name: shape} of the Qwen2-VL that `config` describes, in the published order."""
    hidden, inner, vision = config["hidden_size"], config["intermediate_size"], config["vision_config"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    width, merged = vision["embed_dim"], 4 * vision["embed_dim"]
    shapes: dict[str, tuple[int, ...]] = {"visual.patch_embed.proj.weight": (width, 3, 2, 14, 14)}
    for i in range(vision["depth"]):
        block = f"visual.blocks.{i}"
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
        for name, out, into in [("attn.qkv", 3 * width, width), ("attn.proj", width, width)]:
            shapes |= _linear(f"{block}.{name}", out, into)
        shapes |= _linear(f"{block}.mlp.fc1", merged, width) | _linear(f"{block}.mlp.fc2", width, merged)
    shapes |= {"visual.merger.ln_q.weight": (width,), "visual.merger.ln_q.bias": (width,)}
    shapes |= _linear("visual.merger.mlp.0", merged, merged) | _linear("visual.merger.mlp.2", hidden, merged)
    shapes["model.embed_tokens.weight"] = (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= _linear(f"{layer}.self_attn.q_proj", hidden, hidden)
        shapes |= _linear(f"{layer}.self_attn.k_proj", kv, hidden) | _linear(f"{layer}.self_attn.v_proj", kv, hidden)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[f"{layer}.mlp.gate_proj.weight"] = shapes[f"{layer}.mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"{layer}.input_layernorm.weight"] = shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    return shapes


def _linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def random_bfloat16(shape: Iterable[int], seed: int) -> np.ndarray:
    """Finite random bfloat16 of every sign and of many sizes, made from bits."""
    bits = np.random.default_rng(seed).integers(0, 1 << 16, size=tuple(shape), dtype=np.uint16)
    return ((bits & 0x8FFF) | 0x3000).view(BFLOAT16)


def write_sharded(folder: Path, config: dict, shards: int) -> list[Path]:
    """A Hugging Face folder of random bfloat16 weights in `shards` safetensors files of about one size."""
    folder.mkdir(parents=True)
    shapes = qwen_shapes(config)
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    parts: list[dict] = [{} for _ in range(shards)]
    done = 0
    for name, shape in shapes.items():
        parts[min(done * shards // total, shards - 1)][name] = (shape, BFLOAT16)
        done += int(np.prod(shape))
    weight_map, files = {}, []
    for i, part in enumerate(parts, 1):
        files.append(folder / f"model-{i:05d}-of-{shards:05d}.safetensors")
        write_safetensors(files[-1], part, _tensors(part))
        weight_map |= dict.fromkeys(part, files[-1].name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    return files


def _tensors(part: Mapping) -> Iterable[tuple[str, np.ndarray]]:
    for seed, (name, (shape, _)) in enumerate(part.items()):
        yield name, random_bfloat16(shape, seed)


def change_vlm(folder: Path, change: Callable[[dict], None]) -> None:
    """Rewrites a Hugging Face folder's tensors after `change` has had them."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_sam2(file: Path, change: Callable[[dict], None]) -> None:
    """Rewrites a SAM-2 file's state dict after `change` has had it."""
    state = torch.load(file, weights_only=True)
    change(state["model"])
    torch.save(state, file)
