"""Quantised weights, which VIRTUE does not run on: known by their configuration, tensor names and dtypes."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from converters.mapped_file import TensorInfo

# Files of its own that a quantiser leaves beside config.json.
_OWN_FILES = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "ModelOpt",
}
_KEYS = ("quantization_config", "compression_config", "quantization")  # the last is MLX's
# Last parts of tensor names that stand for a weight's codes, scales or zero points; no float checkpoint has them.
_NAMES = (
    ("GPTQ or AWQ", r".+\.(qweight|qzeros|g_idx|scales)"),
    ("bitsandbytes", r".+\.(SCB|weight_format|(weight\.)?(absmax|quant_map|nested_\w+|quant_state\..+))"),
    ("compressed-tensors or fp8", r".+\.(weight_(packed|scale|scale_inv|zero_point|global_scale|shape)|input_scale)"),
    ("HQQ", r".+\.W_q"),
    ("AQLM or VPTQ", r".+\.(codes|codebooks|indices|centroids\..+)"),
    ("quanto", r".+\.(weight\._(data|scale)|input_scale|output_scale)"),
    ("torchao", r".+\.(_?weight[.:_]_?(qdata|tensor_impl.*|int_data|scale|zero_point))"),
    ("EETQ", r".+\.weight_scales"),
)
_PACKED = ("int8", "uint8", "int4", "uint4", "uint32")

PICKLED = ("torchao", "bitsandbytes", "quanto", "hqq")  # packages whose tensor classes lie in PyTorch files


def refusal(where: Path, how: str) -> str:
    """The line with which quantised weights are refused. how: the method, and what it was known by."""
    remedy = "import the model that they were made from, in float32, bfloat16 or float16"
    return f"{where}: the weights are quantised ({how}), which is not supported; {remedy}"


def by_config(folder: Path) -> str | None:
    """The refusal of a Hugging Face folder whose configuration says that its weights are quantised, or None."""
    for name, method in _OWN_FILES.items():
        if (folder / name).is_file():
            return refusal(folder, f"{method}, by {name}")
    if list(folder.glob("*.gguf")) and not list(folder.glob("*.safetensors")) + list(folder.glob("*.bin")):
        return refusal(folder, "GGUF")
    try:
        config = json.loads((folder / "config.json").read_text())
        places = [config, config.get("text_config") or {}, config.get("vision_config") or {}]
        settings = [p.get(key) for p in places for key in _KEYS]
    except (OSError, ValueError, AttributeError):
        return None  # whoever reads the config for its geometry says what is wrong with it
    for values in filter(None, settings):
        return refusal(folder / "config.json", f"{_method(values)}, by quantization_config")
    return None


def _method(values) -> str:
    values = values if isinstance(values, dict) else {}
    if values.get("load_in_4bit") or values.get("load_in_8bit"):
        return "bitsandbytes"
    return str(values.get("quant_method") or "method not named")


def by_tensors(infos: Mapping[str, TensorInfo]) -> str | None:
    """The refusal of tensors that are a quantised model's, by names and dtypes, or None."""
    for name, info in infos.items():
        if method := next((method for method, pattern in _NAMES if re.fullmatch(pattern, name)), None):
            return refusal(info.file, f"{method}, by tensor {name}")
    for name, info in infos.items():
        kind = info.dtype.name
        if kind.startswith(("float8", "float6", "float4")) or (kind in _PACKED and name.endswith(".weight")):
            return refusal(info.file, f"tensor {name} is {kind}")
    return None
