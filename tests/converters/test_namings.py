"""One model under every name that its tensors have been saved under."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from converters.exporting import ExportRequest
from converters.exporting import run as export
from converters.importing import open_request, run
from converters.plan import read_state

ADAPTER = "adapter_model.safetensors"


def with_inner(name: str) -> str:
    """As `Qwen2VLForConditionalGeneration` has it from transformers 4.52 on; 4.52 saves these names too."""
    return f"model.{name}" if name.startswith("visual.") else re.sub(r"^model\.", "model.language_model.", name)


def headless(name: str) -> str:
    """As `AutoModel` saves it from transformers 4.52 on."""
    return with_inner(name).removeprefix("model.")


NAMINGS = {
    "published": str,
    "4.52": with_inner,
    "headless": headless,
    "data parallel": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{with_inner(name)}",
    "compiled, data parallel": lambda name: f"module._orig_mod.{headless(name)}",
    "data parallel, compiled": lambda name: f"_orig_mod.module.{name}",
    "layers compiled": lambda name: re.sub(r"layers\.(\d+)", r"layers.\1._orig_mod", name),
    "sharded": lambda name: re.sub(r"layers\.(\d+)", r"layers.\1._fsdp_wrapped_module", f"_fsdp_wrapped_module.{name}"),
}


def renamed(source: Path, target: Path, rename) -> None:
    save_file({rename(name): tensor for name, tensor in load_file(source).items()}, target)


def assert_same_state(state: dict, wanted: dict) -> None:
    for path, value in state.items():
        np.testing.assert_array_equal(value, wanted[path], err_msg=path)


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_gives_the_same_model(request_for, copy, tiny, tiny_state, naming):
    vlm = copy("vlm")
    renamed(tiny / "vlm/model.safetensors", vlm / "model.safetensors", NAMINGS[naming])
    assert_same_state(read_state(open_request(request_for(vlm=vlm))), tiny_state)


@pytest.mark.parametrize("naming", NAMINGS)
def test_an_adapter_made_on_each_naming_is_the_same_adapter(request_for, copy, tiny, tiny_state, naming):
    folder = copy("adapter")
    prefix = "base_model.model."
    renamed(tiny / "adapter" / ADAPTER, folder / ADAPTER, lambda name: prefix + NAMINGS[naming](name[len(prefix) :]))
    assert_same_state(read_state(open_request(request_for(adapter=folder))), tiny_state)


def test_an_adapter_made_on_a_language_model_alone_is_the_same_adapter(request_for, copy, tiny, tiny_state):
    folder = copy("adapter")
    renamed(tiny / "adapter" / ADAPTER, folder / ADAPTER, lambda name: name.replace(".model.model.", ".model."))
    assert_same_state(read_state(open_request(request_for(adapter=folder))), tiny_state)


@pytest.mark.parametrize("wrap", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrapped_sam2_and_connector_files_are_unwrapped(request_for, copy, tiny, tiny_state, wrap):
    sam2, joined = copy("sam2_tiny.pt"), copy("sam2_reducer_and_vlm_layer.pth")
    copy("sam2_tiny.yaml")
    state = torch.load(sam2, weights_only=True)["model"]
    torch.save({"model": {wrap + name: x for name, x in state.items()}}, sam2)
    parts = torch.load(joined, weights_only=True)
    torch.save({key: {wrap + name: x for name, x in part.items()} for key, part in parts.items()}, joined)
    assert_same_state(read_state(open_request(request_for(sam2=sam2, connector=joined))), tiny_state)
    torch.save({f"{wrap}{key}.{name}": x for key, part in parts.items() for name, x in part.items()}, joined)
    assert_same_state(read_state(open_request(request_for(sam2=sam2, connector=joined))), tiny_state)


def training_checkpoint(state: dict) -> dict:
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    return {
        "model": state,
        "optimizer": {"optimizer": optimizer.state_dict()},
        "epoch": 40,
        "loss": {},
        "steps": {"train": 1234},
        "time_elapsed": 321.5,
        "ema": {"no_mem_embed": torch.zeros(3)},
        "best_meter_values": {"J&F": np.float64(0.75), "steps": np.int64(3), "history": np.arange(4.0)},
    }


def test_of_a_training_checkpoint_only_the_model_counts(request_for, copy, tiny, tiny_state):
    sam2, joined = copy("sam2_tiny.pt"), copy("sam2_reducer_and_vlm_layer.pth")
    copy("sam2_tiny.yaml")
    torch.save(training_checkpoint(torch.load(sam2, weights_only=True)["model"]), sam2)
    torch.save(training_checkpoint(torch.load(joined, weights_only=True)), joined)
    assert_same_state(read_state(open_request(request_for(sam2=sam2, connector=joined))), tiny_state)


def test_a_model_without_a_head_imports_whatever_its_config_ties_and_exports_without_one(request_for, copy, capfd):
    vlm = copy("vlm")
    tensors = load_file(vlm / "model.safetensors")
    save_file({headless(name): x for name, x in tensors.items()}, vlm / "model.safetensors")
    config = json.loads((vlm / "config.json").read_text())
    config |= {"tie_word_embeddings": False, "architectures": ["Qwen2VLModel"]}
    (vlm / "config.json").write_text(json.dumps(config))
    run(request_for(vlm=vlm))
    assert "has no lm_head.weight" in capfd.readouterr().err
    out = request_for().out.parent / "out"
    export(ExportRequest(model=request_for().out, out=out))
    exported = load_file(out / "vlm/model.safetensors")
    assert set(exported) == set(tensors)
    assert all(torch.equal(exported[name], tensors[name]) for name in tensors)
    from transformers import AutoModel

    _, loading = AutoModel.from_pretrained(out / "vlm", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]


def test_a_language_model_alone_is_refused_in_one_line(request_for, problems_of, copy):
    vlm = copy("vlm")
    tensors = load_file(vlm / "model.safetensors")
    alone = {name.removeprefix("model."): x for name, x in tensors.items() if not name.startswith("visual.")}
    save_file(alone, vlm / "model.safetensors")
    text = problems_of(request_for(vlm=vlm))
    assert "no vision tower" in text
    assert "\n" not in text


@pytest.mark.parity
@pytest.mark.parametrize("head", [True, False])
def test_what_the_installed_transformers_and_peft_save_is_the_same_model(request_for, tiny, tiny_state, tmp_path, head):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, Qwen2VLForConditionalGeneration

    kind = Qwen2VLForConditionalGeneration if head else AutoModel
    model = kind.from_pretrained(tiny / "vlm", dtype=torch.float32)
    for name, original in [("original", True), ("modules", False)]:
        model.save_pretrained(tmp_path / name, save_original_format=original)
        assert_same_state(read_state(open_request(request_for(vlm=tmp_path / name))), tiny_state)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], use_dora=head)
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    state = read_state(open_request(request_for(adapter=tmp_path / "adapter")))
    wanted = {n: x.detach().numpy() for n, x in adapted.named_parameters() if "layers.1.mlp.down_proj.lora_A" in n}
    np.testing.assert_array_equal(state["text.layers.mlp.down_proj.lora_a"][1].T, *wanted.values())
