"""A Qwen2-VL folder in Hugging Face's format as our two towers, through the converters' own weight table."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from converters import adapter as peft_format
from converters import qwen2_vl
from converters.rules import expand
from converters.sources import open_folder, open_source
from virtue_jax.config import AdapterConfig, Numerics, TextConfig, VisionConfig
from virtue_jax.models.lora import adapt
from virtue_jax.models.parameters import bind
from virtue_jax.models.qwen2_text import QwenText
from virtue_jax.models.qwen2_vision import QwenVision


class Qwen(nnx.Module):
    """Both towers under the names that they have inside a VIRTUE."""

    def __init__(self, vision: VisionConfig, text: TextConfig, adapter: AdapterConfig | None, numerics: Numerics):
        self.vision = QwenVision(vision, numerics=numerics, rngs=nnx.Rngs(0))
        self.text = QwenText(text, numerics=numerics, rngs=nnx.Rngs(0))
        if adapter is not None:
            adapt(self.text, adapter, numerics=numerics, rngs=nnx.Rngs(0))


def load_qwen(folder: Path, adapter_folder: Path | None = None) -> Qwen:
    """The towers with the folder's weights; with the adapter of a PEFT folder beside them, if one is given."""
    source = open_folder(folder, qwen2_vl.published_name)
    file = folder / "config.json"
    has_lm_head = qwen2_vl.LM_HEAD in source.infos
    vision, text = qwen2_vl.read_geometry(qwen2_vl.read_config(file), file, has_lm_head=has_lm_head)
    params = _pack(qwen2_vl.rules(vision, text), source)
    adapter = None
    if adapter_folder is not None:
        file = adapter_folder / peft_format.CONFIG_NAME
        source = open_source(peft_format.find_file(adapter_folder), peft_format.published_name)
        adapter = peft_format.read_geometry(json.loads(file.read_text()), file, source.infos)
        params |= _pack(peft_format.rules(adapter, text.num_hidden_layers), source)
    return bind(nnx.eval_shape(lambda: Qwen(vision, text, adapter, Numerics())), params)


def _pack(rules, source) -> dict:
    return {e.target: jnp.asarray(e.pack([source.read(name) for name in e.sources])) for e in expand(rules)}


def first_frames(pixel_values: np.ndarray) -> np.ndarray:
    """[P, 588] of Qwen2-VL's pixel_values[P, 1176], whose patches hold (channel, frame, y, x) with equal frames."""
    patches = pixel_values.reshape(len(pixel_values), 3, 2, -1)
    assert (patches[:, :, 0] == patches[:, :, 1]).all()
    return patches[:, :, 0].reshape(len(patches), -1)


def grid_yx(height: int, width: int) -> np.ndarray:
    """int32[height * width, 2]: row and column of the patches of a grid, 2 x 2 blocks first."""
    yx = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1).astype(np.int32)
    return yx.reshape(height // 2, 2, width // 2, 2, 2).transpose(0, 2, 1, 3, 4).reshape(-1, 2)


def pack_images(pixel_values: np.ndarray, grid_thw: np.ndarray, length: int):
    """(patches[1, length, 588], patch_yx, patch_segments) of images one after the other, then padding."""
    yx = np.concatenate([grid_yx(h, w) for _, h, w in grid_thw])
    segments = np.concatenate([np.full(h * w, i + 1, np.int32) for i, (_, h, w) in enumerate(grid_thw)])
    pad = length - len(segments)
    arrays = first_frames(pixel_values), yx, segments
    return tuple(jnp.asarray(np.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1)))[None] for x in arrays)
