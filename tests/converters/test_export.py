"""Export is the inverse of import, and its files load where they came from."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from converters.exporting import ExportRequest
from converters.exporting import run as export
from converters.importing import ImportRequest, run
from virtue_jax.config import AdapterConfig, Numerics
from virtue_jax.model_directory import companions, load_config, load_model, save_model
from virtue_jax.models.parameters import abstract_virtue, parameters


@pytest.fixture(scope="module")
def exported(tiny_model_dir, tmp_path_factory):
    """The tiny model with its adapter, exported unmerged."""
    out = tmp_path_factory.mktemp("export") / "out"
    export(ExportRequest(model=tiny_model_dir(adapter=True), out=out, adapter_names="published"))
    return out


@pytest.fixture(scope="module")
def merged(tiny_model_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "merged"
    export(ExportRequest(model=tiny_model_dir(adapter=True), out=out, merge_adapter=True))
    return out


def assert_identical(one, other):
    assert set(one) == set(other)
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert torch.equal(one[name], other[name]), name


def reimport(exported, out, **changes) -> ImportRequest:
    values = dict(
        out=out,
        sam2=exported / "sam2.pt",
        vlm=exported / "vlm",
        connector=exported / "sam2_reducer_and_vlm_layer.pth",
        adapter=exported / "adapter",
    )
    return ImportRequest(**(values | changes))


def test_every_tensor_comes_back_bit_for_bit(exported, tiny):
    assert_identical(load_file(exported / "vlm/model.safetensors"), load_file(tiny / "vlm/model.safetensors"))
    name = "adapter/adapter_model.safetensors"
    assert_identical(load_file(exported / name), load_file(tiny / name))
    sam = [torch.load(path, weights_only=True)["model"] for path in (exported / "sam2.pt", tiny / "sam2_tiny.pt")]
    assert_identical(*sam)
    name = "sam2_reducer_and_vlm_layer.pth"
    one, other = (torch.load(folder / name, weights_only=True) for folder in (exported, tiny))
    assert set(one) == set(other)
    for part in one:
        assert_identical(one[part], other[part])
    assert (exported / "sam2.yaml").read_bytes() == (tiny / "sam2_tiny.yaml").read_bytes()
    assert json.loads((exported / "vlm/config.json").read_text()) == json.loads((tiny / "vlm/config.json").read_text())


def test_importing_an_export_gives_the_same_model(exported, tiny_model_dir, tmp_path):
    run(reimport(exported, tmp_path / "again"))
    one, other = (load_model(folder, Numerics()) for folder in (tmp_path / "again", tiny_model_dir(adapter=True)))
    assert one[0] == other[0]
    a, b = parameters(one[1]), parameters(other[1])
    assert set(a) == set(b)
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def test_bfloat16_and_shards_survive_the_round_trip(request_for, tiny, tmp_path):
    half = tmp_path / "half"
    half.mkdir()
    tensors = {k: v.to(torch.bfloat16) for k, v in load_file(tiny / "vlm/model.safetensors").items()}
    save_file(tensors, half / "model.safetensors")
    config = json.loads((tiny / "vlm/config.json").read_text()) | {"torch_dtype": "bfloat16"}
    (half / "config.json").write_text(json.dumps(config))
    run(request_for(vlm=half))
    export(ExportRequest(model=request_for().out, out=tmp_path / "out"), shard_bytes=200_000)
    index = json.loads((tmp_path / "out/vlm/model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    loaded = {}
    for file in files:
        part = load_file(tmp_path / "out/vlm" / file)
        assert all(index["weight_map"][name] == file for name in part)
        loaded |= part
    assert_identical(loaded, tensors)
    assert json.loads((tmp_path / "out/vlm/config.json").read_text())["torch_dtype"] == "bfloat16"
    run(reimport(tmp_path / "out", tmp_path / "again", adapter=None))


def test_an_untied_head_comes_back(request_for, tiny, tmp_path):
    untied = tmp_path / "untied"
    untied.mkdir()
    tensors = load_file(tiny / "vlm/model.safetensors")
    tensors["lm_head.weight"] = torch.randn_like(tensors["model.embed_tokens.weight"])
    save_file(tensors, untied / "model.safetensors")
    config = json.loads((tiny / "vlm/config.json").read_text()) | {"tie_word_embeddings": False}
    (untied / "config.json").write_text(json.dumps(config))
    run(request_for(vlm=untied))
    export(ExportRequest(model=request_for().out, out=tmp_path / "out"))
    assert_identical(load_file(tmp_path / "out/vlm/model.safetensors"), tensors)


def test_the_merged_folder_is_the_authors_export(merged, tiny, tmp_path):
    reference = torch.load(tiny / "virtue_hf/pytorch_model.bin", weights_only=True)
    tensors = load_file(merged / "model.safetensors")
    assert set(reference) - set(tensors) == {"lm_head.weight"}
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, reference[name], rtol=2e-6, atol=1e-6, msg=name)
    config = json.loads((merged / "config.json").read_text())
    assert config["virtue_sam"] == {
        "enabled": True,
        "config_path": "sam2.yaml",
        "checkpoint": "sam2.pt",
        "points_per_side": 3,
        "feature_levels": 2,
    }
    run(ImportRequest(out=tmp_path / "again", virtue=merged, sam2=merged / "sam2.pt"))
    config, model = load_model(tmp_path / "again", Numerics())
    assert config.adapter is None
    kernel = np.asarray(parameters(model)["text.layers.self_attn.v_proj.kernel"][1])
    np.testing.assert_array_equal(kernel.T, tensors["model.layers.1.self_attn.v_proj.weight"].numpy())


def load_strictly(folder):
    from transformers import Qwen2VLForConditionalGeneration

    model, told = Qwen2VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), told
    return model.eval()


def hidden_states(model):
    ids = torch.arange(40).reshape(2, 20) * 7 % 1000
    with torch.no_grad():
        return model(input_ids=ids, output_hidden_states=True).hidden_states


@pytest.mark.parity
def test_transformers_loads_the_exported_folder_with_the_same_hidden_states(exported, tiny):
    for one, other in zip(
        hidden_states(load_strictly(exported / "vlm")), hidden_states(load_strictly(tiny / "vlm")), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parity
def test_peft_on_the_exported_base_computes_what_the_merged_folder_does(tiny_model_dir, merged, tiny, tmp_path):
    from peft import PeftModel

    export(ExportRequest(model=tiny_model_dir(adapter=True), out=tmp_path / "out"))
    adapted = PeftModel.from_pretrained(load_strictly(tmp_path / "out/vlm"), tmp_path / "out/adapter")
    got = hidden_states(adapted.base_model.model)
    for other in (merged, tiny / "virtue_hf"):
        for one, wanted in zip(got, hidden_states(load_strictly(other)), strict=True):
            torch.testing.assert_close(one, wanted, rtol=1e-4, atol=2e-5)
    base = hidden_states(load_strictly(tiny / "vlm"))
    assert (got[-1] - base[-1]).abs().max() > 1e-2


@pytest.mark.parametrize("names", ["published", "current", "both"])
def test_the_adapter_is_importable_under_each_of_its_names(tiny_model_dir, tiny_state, tmp_path, names):
    export(ExportRequest(model=tiny_model_dir(adapter=True), out=tmp_path / "out", adapter_names=names))
    stored = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    assert len(stored) == (90 if names == "both" else 45)
    run(reimport(tmp_path / "out", tmp_path / "again"))
    _, model = load_model(tmp_path / "again", Numerics())
    for path, value in parameters(model).items():
        np.testing.assert_array_equal(value, tiny_state[path], err_msg=path)


@pytest.mark.slow
def test_a_model_that_came_from_no_file_exports_and_comes_back(tiny_model_dir, tmp_path):
    config = load_config(tiny_model_dir())
    config = dataclasses.replace(
        config,
        adapter=AdapterConfig(rank=4, alpha=6.0, use_dora=False, targets=("up_proj",)),
        sam2=dataclasses.replace(config.sam2, decoder_heads=4),  # Meta's files have no place for it
    )
    rng = np.random.default_rng(0)
    shapes = parameters(abstract_virtue(config, Numerics()))
    params = {path: rng.standard_normal(x.shape).astype(np.float32) for path, x in shapes.items()}
    save_model(tmp_path / "model", config, params)
    export(ExportRequest(model=tmp_path / "model", out=tmp_path / "out"))
    load_strictly(tmp_path / "out/vlm")
    request = reimport(tmp_path / "out", tmp_path / "again", sam2_config=tmp_path / "out/sam2.yaml", compat="paper")
    run(request)
    again, model = load_model(tmp_path / "again", Numerics())
    assert dataclasses.replace(again, compat=config.compat) == config
    for path, value in parameters(model).items():
        np.testing.assert_array_equal(value, params[path], err_msg=path)


@pytest.mark.slow
def test_a_trained_copy_keeps_what_the_base_carried(tiny_model_dir, tiny, tmp_path):
    base = tiny_model_dir(adapter=True)
    config, model = load_model(base, Numerics())
    trained = {path: jax.numpy.asarray(x) + (0.5 if ".lora_" in path else 0) for path, x in parameters(model).items()}
    save_model(tmp_path / "trained", config, trained, **companions(base))
    export(ExportRequest(model=tmp_path / "trained", out=tmp_path / "out", adapter_names="published"))
    one = torch.load(tmp_path / "out/sam2.pt", weights_only=True)["model"]
    assert_identical(one, torch.load(tiny / "sam2_tiny.pt", weights_only=True)["model"])
    name = "adapter/adapter_model.safetensors"
    moved, before = load_file(tmp_path / "out" / name), load_file(tiny / name)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    torch.testing.assert_close(moved[key], before[key] + 0.5)
    assert (tmp_path / "out/vlm/tokenizer.json").is_file()


def test_a_model_is_not_replaced_by_its_own_export(tiny_model_dir):
    model = tiny_model_dir()
    for out in (model, model.parent):
        with pytest.raises(FileExistsError, match="which is read and would be deleted"):
            export(ExportRequest(model=model, out=out, overwrite=True))
    assert (model / "virtue_config.json").is_file()


def test_an_existing_export_is_not_overwritten_unasked(tiny_model_dir, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("keep")
    request = ExportRequest(model=tiny_model_dir(), out=tmp_path / "out")
    with pytest.raises(FileExistsError, match="exists"):
        export(request)
    assert (tmp_path / "out/mine.txt").read_text() == "keep"
    export(dataclasses.replace(request, overwrite=True))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "sam2.pt",
        "sam2.yaml",
        "sam2_reducer_and_vlm_layer.pth",
        "vlm",
    ]
