"""Every form of import fills the model with the right values."""

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from converters.__main__ import main
from converters.errors import CheckpointError
from converters.importing import open_request, run
from converters.plan import read_state
from virtue_jax.config import AdapterConfig, Compat, Numerics
from virtue_jax.exit_status import REFUSED
from virtue_jax.model_directory import load_config, load_model, read_head, stored_parameters
from virtue_jax.models.parameters import parameters


def assert_same(one, other, paths=None):
    paths = sorted(set(one) | set(other)) if paths is None else paths
    for path in paths:
        a, b = np.asarray(one[path]), np.asarray(other[path])
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(a, b, err_msg=path)


def test_values_land_where_the_model_reads_them(tiny, tiny_state):
    vlm = {k: v.numpy() for k, v in load_file(tiny / "vlm/model.safetensors").items()}
    sam = {k: v.numpy() for k, v in torch.load(tiny / "sam2_tiny.pt", weights_only=True)["model"].items()}
    adapter = load_file(tiny / "adapter/adapter_model.safetensors")
    both = torch.load(tiny / "sam2_reducer_and_vlm_layer.pth", weights_only=True)
    lora = "base_model.model.model.layers.2.mlp.down_proj.lora_A.weight"
    pairs = [
        (tiny_state["text.layers.self_attn.q_proj.kernel"][1], vlm["model.layers.1.self_attn.q_proj.weight"].T),
        (tiny_state["text.embed_tokens.embedding"], vlm["model.embed_tokens.weight"]),
        (tiny_state["vision.blocks.attn.qkv.bias"][0], vlm["visual.blocks.0.attn.qkv.bias"]),
        (tiny_state["vision.merger.fc2.kernel"], vlm["visual.merger.mlp.2.weight"].T),
        (tiny_state["sam2.trunk.stages.2.first.proj.kernel"], sam["image_encoder.trunk.blocks.3.proj.weight"].T),
        (tiny_state["sam2.trunk.stages.2.rest.norm2.scale"][1], sam["image_encoder.trunk.blocks.5.norm2.weight"]),
        (tiny_state["sam2.prompt_encoder.point_embeddings"][2], sam["sam_prompt_encoder.point_embeddings.2.weight"][0]),
        (tiny_state["sam2.no_mem_embed"], sam["no_mem_embed"][0, 0]),
        (tiny_state["connector.reduce.kernel"][1, 3], both["sam2_reducer"]["weight"].numpy()[:, :, 1, 3].T),
        (tiny_state["text.layers.mlp.down_proj.lora_a"][2], adapter[lora].numpy().T),
    ]
    for got, wanted in pairs:
        np.testing.assert_array_equal(got, wanted)


def test_a_model_directory_loads_with_the_values_that_were_read(tiny_model_dir, tiny_state):
    config, model = load_model(tiny_model_dir(adapter=True), Numerics())
    assert config.adapter == AdapterConfig()
    assert config.compat == Compat.released()
    assert config.points_per_side == 3
    assert_same(parameters(model), tiny_state)


def test_the_trainers_bin_adapter_is_the_safetensors_one(request_for, tiny, tiny_state):
    state = read_state(open_request(request_for(adapter=tiny / "train_checkpoint")))
    assert_same(state, tiny_state)


def test_a_training_checkpoint_brings_its_own_connector_and_an_adapter_alone_is_refused(request_for, tiny, tiny_state):
    state = read_state(open_request(request_for(connector=None, adapter=tiny / "train_checkpoint")))
    assert_same(state, tiny_state)
    with pytest.raises(CheckpointError, match="give the connector"):
        open_request(request_for(connector=None, adapter=tiny / "adapter"))


def test_a_merged_virtue_folder_needs_only_sam2_beside_it(request_for, tiny, tiny_state):
    run(request_for(vlm=None, connector=None, virtue=tiny / "virtue_hf"))
    config, model = load_model(request_for().out, Numerics())
    assert config.adapter is None
    assert config.text.tie_word_embeddings
    merged = parameters(model)
    frozen = [path for path in merged if "self_attn" not in path and "down_proj" not in path]
    assert_same(merged, tiny_state, frozen)
    q_proj = "text.layers.self_attn.q_proj.kernel"
    assert np.abs(np.asarray(merged[q_proj]) - tiny_state[q_proj]).max() > 1e-3


@pytest.mark.slow
def test_a_fresh_connector_follows_the_seed(request_for, tiny_state, tmp_path):
    states = {}
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        run(request_for(connector=None, seed=seed, out=tmp_path / name))
        config, model = load_model(tmp_path / name, Numerics())
        states[name] = parameters(model)
    assert config.compat == Compat.paper()
    fresh = [path for path in states["a"] if path.startswith("connector.")]
    assert_same(states["a"], states["b"])
    kernel = "connector.fc1.kernel"
    assert np.abs(states["a"][kernel] - states["c"][kernel]).max() > 0
    assert 0.5 < np.asarray(states["a"][kernel]).std() * 32**0.5 < 2
    assert_same(states["a"], tiny_state, [path for path in states["a"] if path not in fresh])


def sharded_copy(vlm: Path, folder: Path, suffix: str, rename=str) -> Path:
    """`vlm` in three shards, safetensors or .bin, tensors named by `rename`."""
    folder.mkdir()
    tensors = {rename(k): v for k, v in load_file(vlm / "model.safetensors").items()}
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    weight_map = {}
    for i in range(3):
        part = {k: tensors[k] for k in list(tensors)[i::3]}
        file = folder / f"{stem}-{i + 1:05d}-of-00003.{suffix}"
        save_file(part, file) if suffix == "safetensors" else torch.save(part, file)
        weight_map |= dict.fromkeys(part, file.name)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((vlm / name).read_bytes())
    return folder


def newer_name(name: str) -> str:
    return "model." + name if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("rename", [str, newer_name])
def test_shards_and_both_ways_of_naming_give_the_same_model(request_for, tiny, tiny_state, tmp_path, suffix, rename):
    folder = sharded_copy(tiny / "vlm", tmp_path / "sharded", suffix, rename)
    state = read_state(open_request(request_for(vlm=folder)))
    assert_same(state, tiny_state, list(state))
    assert sum(".lora_" in path or path.endswith("magnitude") for path in tiny_state) + len(state) == len(tiny_state)


def test_a_folder_saved_by_the_installed_transformers_gives_the_same_model(request_for, tiny, tiny_state, tmp_path):
    from transformers import Qwen2VLForConditionalGeneration

    model = Qwen2VLForConditionalGeneration.from_pretrained(tiny / "vlm", dtype=torch.float32)
    model.save_pretrained(tmp_path / "saved")
    state = read_state(open_request(request_for(vlm=tmp_path / "saved")))
    assert_same(state, tiny_state, list(state))
    one, other = (open_request(request_for(vlm=folder)).config for folder in (tmp_path / "saved", tiny / "vlm"))
    assert one == other


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_asked_for_is_rounded_to_nearest(request_for, tiny_state, dtype):
    run(request_for(dtype=dtype))
    stored = stored_parameters(request_for().out)
    other = {path for path, x in stored.items() if np.dtype(x.dtype).name != dtype}
    # The model computes point coordinates in float32, so rounding this one would move every prompt.
    assert other <= {"sam2.prompt_encoder.positional_encoding_gaussian_matrix"}
    _, model = load_model(request_for().out, Numerics(params=dtype))
    path = "text.layers.mlp.up_proj.kernel"
    np.testing.assert_array_equal(
        np.asarray(parameters(model)[path]), tiny_state[path].astype(jax.numpy.dtype(dtype)), err_msg=path
    )


def test_keep_preserves_every_dtype_bit_for_bit(request_for, tiny, tmp_path):
    folder = tmp_path / "half"
    folder.mkdir()
    tensors = load_file(tiny / "vlm/model.safetensors")
    kinds = {k: torch.bfloat16 if k.startswith("model.") else torch.float16 for k in tensors}
    tensors = {k: v.to(kinds[k]) for k, v in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_bytes((tiny / "vlm/config.json").read_bytes())
    state = read_state(open_request(request_for(vlm=folder)), "keep")
    kernel = state["text.layers.mlp.up_proj.kernel"]
    assert kernel.dtype == ml_dtypes.bfloat16
    wanted = tensors["model.layers.2.mlp.up_proj.weight"].view(torch.int16).numpy().T
    np.testing.assert_array_equal(kernel[2].view(np.int16), wanted)
    assert state["vision.blocks.mlp.fc1.kernel"].dtype == np.float16
    assert state["sam2.no_mem_embed"].dtype == np.float32


def test_the_directory_stands_alone_and_tells_where_it_came_from(tiny_model_dir, tiny):
    folder = tiny_model_dir(adapter=True)
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "preprocessor_config.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (tiny / "vlm" / name).read_bytes()
    assert read_head(folder)["provenance"]["imported_from"]["sam2"] == "sam2_tiny.pt"
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)("a cat on a mat")["input_ids"]
    assert tokens == AutoTokenizer.from_pretrained(tiny / "vlm")("a cat on a mat")["input_ids"]


def test_a_folder_without_tokenizer_imports_with_a_warning_and_takes_one_from_elsewhere(tiny, tmp_path, capfd):
    base = ["import", "--virtue", str(tiny / "virtue_hf"), "--sam2", str(tiny / "sam2_tiny.pt")]
    assert main([*base, "--out", str(tmp_path / "a")]) == 0
    assert "no tokenizer files found" in capfd.readouterr().err
    assert main([*base, "--processor", str(tiny / "vlm"), "--out", str(tmp_path / "b")]) == 0
    assert "no tokenizer" not in capfd.readouterr().err
    assert (tmp_path / "b/tokenizer.json").is_file()


def test_compat_and_points_can_be_said(request_for, tiny, tmp_path):
    folder = tmp_path / "virtue"
    folder.mkdir()
    for file in (tiny / "virtue_hf").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["virtue_sam"]["points_per_side"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    run(request_for(vlm=None, connector=None, virtue=folder, compat="paper"))
    config = load_config(request_for().out)
    assert config.points_per_side == 5
    assert config.compat == Compat.paper()


def test_geometry_comes_from_the_yaml_that_is_given(request_for, tiny, tmp_path):
    moved = tmp_path / "elsewhere.pt"
    moved.write_bytes((tiny / "sam2_tiny.pt").read_bytes())
    request = request_for(sam2=moved, sam2_config=tiny / "sam2_tiny.yaml")
    hiera = open_request(request).config.sam2.hiera
    assert (hiera.num_heads, hiera.stages, hiera.global_att_blocks, hiera.window_spec) == (
        1,
        (1, 2, 3, 2),
        (4,),
        (8, 4, 14, 7),
    )


def test_an_untied_head_is_carried(request_for, tiny, tmp_path):
    folder = tmp_path / "untied"
    folder.mkdir()
    tensors = load_file(tiny / "vlm/model.safetensors")
    tensors["lm_head.weight"] = torch.randn_like(tensors["model.embed_tokens.weight"])
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((tiny / "vlm/config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    run(request_for(vlm=folder))
    assert not load_config(request_for().out).text.tie_word_embeddings
    kept = load_file(request_for().out / "carried/vlm.safetensors")
    torch.testing.assert_close(kept["lm_head.weight"], tensors["lm_head.weight"], rtol=0, atol=0)


def test_requests_that_contradict_each_other_are_refused(tiny, tmp_path, capfd):
    sam = ["--sam2", str(tiny / "sam2_tiny.pt"), "--out", str(tmp_path / "out")]
    argv = ["import", "--virtue", str(tiny / "virtue_hf"), "--adapter", str(tiny / "adapter"), *sam]
    assert main(argv) == REFUSED
    assert "--adapter goes with --vlm" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main(["import", "--virtue", "x", "--vlm", "y", *sam])
    assert not (tmp_path / "out").exists()
