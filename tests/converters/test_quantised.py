"""Quantised weights are refused in one line that says so, by their configuration, tensor names or dtypes."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic import change_vlm

from converters.__main__ import main
from converters.mapped_file import TensorInfo
from converters.quantised import by_tensors
from virtue_jax.exit_status import REFUSED

LAYER = "model.layers.0.mlp.up_proj"
SETTINGS = {
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq", "bits": 4},
    "bitsandbytes": {"load_in_4bit": True},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "compressed-tensors": {"quant_method": "compressed-tensors"},
    "torchao": {"quant_method": "torchao", "quant_type": {}},
    "method not named": {"bits": 4},
    "mxfp4": {"quant_method": "mxfp4"},
}
TENSORS = {
    "GPTQ or AWQ": {"qweight": torch.zeros(4, 4, dtype=torch.int32), "scales": torch.zeros(4)},
    "bitsandbytes": {"weight": torch.zeros(9, 1, dtype=torch.uint8), "weight.absmax": torch.zeros(4)},
    "fp8": {"weight": torch.zeros(128, 64).to(torch.float8_e4m3fn), "weight_scale": torch.zeros(1)},
    "compressed-tensors": {"weight_packed": torch.zeros(4, 4, dtype=torch.int32), "weight_shape": torch.zeros(2)},
    "float8_e5m2": {"weight": torch.zeros(128, 64).to(torch.float8_e5m2)},
    "int8": {"weight": torch.zeros(128, 64, dtype=torch.int8)},
    "HQQ": {"W_q": torch.zeros(4, dtype=torch.uint8)},
    "EETQ": {"weight": torch.zeros(128, 64, dtype=torch.int8), "weight_scales": torch.zeros(4)},
}


def refused(capfd, vlm, tiny, out) -> str:
    """The one line with which an import of `vlm` ends."""
    assert main(["import", "--vlm", str(vlm), "--sam2", str(tiny / "sam2_tiny.pt"), "--out", str(out)]) == REFUSED
    (line,) = capfd.readouterr().err.splitlines()
    assert "the weights are quantised" in line
    assert "import the model that they were made from" in line
    assert str(vlm) in line
    assert not out.exists()
    return line


@pytest.mark.parametrize("place", [None, "text_config"])
@pytest.mark.parametrize("method", SETTINGS)
def test_a_quantisation_in_the_config_is_named(capfd, copy, tiny, tmp_path, method, place):
    vlm = copy("vlm")
    config = json.loads((vlm / "config.json").read_text())
    (config if place is None else config.setdefault(place, {}))["quantization_config"] = SETTINGS[method]
    (vlm / "config.json").write_text(json.dumps(config))
    (vlm / "model.safetensors").write_bytes(b"whatever")
    assert method in refused(capfd, vlm, tiny, tmp_path / "out")


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_a_quantisers_own_file_is_enough(capfd, copy, tiny, tmp_path, name):
    vlm = copy("vlm")
    (vlm / name).write_text("{}")
    assert name in refused(capfd, vlm, tiny, tmp_path / "out")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("method", TENSORS)
def test_tensors_of_a_quantised_model_are_known_without_a_config(capfd, copy, tiny, tmp_path, method, suffix):
    vlm = copy("vlm")

    def quantise(tensors):
        del tensors[f"{LAYER}.weight"]
        tensors.update({f"{LAYER}.{name}": tensor for name, tensor in TENSORS[method].items()})

    change_vlm(vlm, quantise)
    if suffix == "bin":
        torch.save(load_file(vlm / "model.safetensors"), vlm / "pytorch_model.bin")
        (vlm / "model.safetensors").unlink()
    assert method in refused(capfd, vlm, tiny, tmp_path / "out")


def test_mlxs_and_llamacpps_models_are_refused(capfd, copy, tiny, tmp_path):
    vlm = copy("vlm")
    config = json.loads((vlm / "config.json").read_text())
    (vlm / "config.json").write_text(json.dumps(config | {"quantization": {"group_size": 64, "bits": 4}}))
    refused(capfd, vlm, tiny, tmp_path / "out")
    (vlm / "config.json").write_text(json.dumps(config))
    (vlm / "model.safetensors").rename(vlm / "model-q4_0.gguf")
    assert "GGUF" in refused(capfd, vlm, tiny, tmp_path / "out")


def test_pytorchs_own_quantised_tensors_are_refused(capfd, copy, tiny, tmp_path):
    vlm = copy("vlm")
    tensors = load_file(vlm / "model.safetensors")
    (vlm / "model.safetensors").unlink()
    name = f"{LAYER}.weight"
    tensors[name] = torch.quantize_per_tensor(tensors[name], 0.1, 0, torch.qint8)
    torch.save(tensors, vlm / "pytorch_model.bin")
    assert f"tensor {name} is qint8" in refused(capfd, vlm, tiny, tmp_path / "out")


@pytest.mark.parametrize("package", ["torchao", "bitsandbytes"])
def test_a_pickled_tensor_class_of_a_quantiser_is_refused(capfd, copy, tiny, tmp_path, monkeypatch, package):
    module = types.ModuleType(package)
    exec("class Quantised:\n    pass", module.__dict__)
    monkeypatch.setitem(sys.modules, package, module)
    module.Quantised.__module__ = package
    vlm = copy("vlm")
    (vlm / "model.safetensors").unlink()
    torch.save({f"{LAYER}.weight": module.Quantised()}, vlm / "pytorch_model.bin")
    assert package in refused(capfd, vlm, tiny, tmp_path / "out")


def test_a_config_of_null_and_the_names_of_plain_models_are_no_sign(request_for, copy, tiny):
    from converters.importing import run

    vlm = copy("vlm")
    config = json.loads((vlm / "config.json").read_text()) | {"quantization_config": None}
    (vlm / "config.json").write_text(json.dumps(config))
    run(request_for(vlm=vlm))
    sam2 = torch.load(tiny / "sam2_tiny.pt", weights_only=True)["model"]
    names = [*sam2, *load_file(tiny / "vlm/model.safetensors"), *load_file(tiny / "adapter/adapter_model.safetensors")]
    assert by_tensors({name: TensorInfo((1,), np.dtype(np.float32), tiny) for name in names}) is None


def test_an_adapter_trained_on_a_quantised_base_is_taken(request_for, copy):
    from converters.importing import open_request

    folder = copy("adapter")
    save_file(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "qwen2-vl-4bit"}))
    assert open_request(request_for(adapter=folder)).config.adapter is not None
