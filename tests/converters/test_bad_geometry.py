"""Configs that do not fit their weights, or that ask for what is not supported, are told with their remedy."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic import change_sam2, change_vlm


def test_wrong_geometry_is_told_with_its_remedy(request_for, problems_of, copy, tiny, tmp_path):
    sam2 = copy("sam2_tiny.pt")
    text = problems_of(request_for(sam2=sam2))
    assert "none of the published sizes" in text
    assert "--sam2-config FILE.yaml" in text
    yaml = tmp_path / "other.yaml"
    yaml.write_text((tiny / "sam2_tiny.yaml").read_text().replace("embed_dim: 8\n", "embed_dim: 16\n", 1))
    text = problems_of(request_for(sam2=sam2, sam2_config=yaml))
    assert f"{yaml}: image_encoder.trunk.embed_dim is 16, but {sam2} has 8" in text
    yaml.write_text("model: {}")
    assert f"{yaml}: expected a SAM-2 config" in problems_of(request_for(sam2=sam2, sam2_config=yaml))


def test_a_file_that_is_no_sam2_and_one_without_its_tracking_parts_are_refused(request_for, problems_of, copy, tiny):
    text = problems_of(request_for(sam2=tiny / "sam2_reducer_and_vlm_layer.pth"))
    assert "not a whole SAM-2.1 state dict" in text
    sam2 = copy("sam2_tiny.pt")
    copy("sam2_tiny.yaml")
    change_sam2(sam2, lambda state: state.pop("no_obj_embed_spatial"))
    assert "missing tensors: none matches no_obj_embed_spatial" in problems_of(request_for(sam2=sam2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama', expected 'qwen2_vl'"),
        ({"hidden_size": None}, "hidden_size is None, expected an integer"),
        ({"use_sliding_window": True}, "use_sliding_window is True, only False is supported"),
        ({"rope_scaling": {"type": "yarn", "mrope_section": [2, 3, 3]}}, "rope type 'yarn' is not supported"),
        ({"rope_scaling": None}, "no mrope_section"),
        ({"vision_config": None}, "no vision_config"),
        ({"num_hidden_layers": 2}, "extra tensor model.layers.2.mlp.down_proj.weight"),
        ({"num_hidden_layers": 4}, "missing tensor model.layers.3.mlp.down_proj.weight"),
    ],
)
def test_a_config_that_does_not_fit_is_told(request_for, problems_of, copy, change, message):
    vlm = copy("vlm")
    config = json.loads((vlm / "config.json").read_text()) | change
    (vlm / "config.json").write_text(json.dumps(config))
    assert message in problems_of(request_for(vlm=vlm))


def test_a_tied_head_that_differs_from_the_embedding_is_refused(request_for, problems_of, copy):
    vlm = copy("vlm")

    def untie(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    change_vlm(vlm, untie)
    text = problems_of(request_for(vlm=vlm))
    assert "tensor lm_head.weight differs from model.embed_tokens.weight" in text
    assert "set tie_word_embeddings to false" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank_pattern": {"q_proj": 4}}, "lora_A.weight has shape (8, 64), but"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is ['q_proj'], expected patterns with numbers"),
        ({"rank_pattern": {"q_proj": 4.5}}, "rank_pattern gives 'q_proj' the value 4.5, expected a positive int"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern gives 'q_proj' the value -1, expected a positive float"),
        ({"alpha_pattern": {"q(": 8}}, "alpha_pattern has 'q(', which is not a regular expression"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = ['lm_head'] is not supported; merge the adapter into"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3' is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' is not supported"),
        ({"brand_new_option": 3}, "brand_new_option = 3 is not supported"),
        ({"r": 0}, "r is 0, expected a positive number"),
        ({"r": 4}, "lora_A.weight has shape (8, 64), expected (4, 64)"),
        ({"use_dora": False}, "extra tensor model.layers.0.self_attn.q_proj.lora_magnitude_vector"),
    ],
)
def test_adapter_options_that_are_not_supported_are_named(request_for, problems_of, copy, change, message):
    folder = copy("adapter")
    config = json.loads((folder / "adapter_config.json").read_text()) | change
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert message in problems_of(request_for(adapter=folder))


def test_an_adapter_on_some_layers_or_elsewhere_is_refused(request_for, problems_of, copy):
    folder = copy("adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    prefix = "base_model.model."
    del tensors[f"{prefix}model.layers.1.self_attn.v_proj.lora_B.weight"]
    tensors[f"{prefix}visual.blocks.0.attn.qkv.lora_A.weight"] = torch.zeros(8, 32)
    save_file(tensors, folder / "adapter_model.safetensors")
    text = problems_of(request_for(adapter=folder))
    assert "missing tensor model.layers.1.self_attn.v_proj.lora_B.weight (32, 8)" in text
    assert "extra tensor visual.blocks.0.attn.qkv.lora_A.weight" in text
