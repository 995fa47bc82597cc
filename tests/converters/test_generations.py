"""Weights of several generations in one folder: one is taken, as `transformers` would, and the others are named."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from converters.importing import open_request, run
from converters.plan import read_state

BOTH = "hold different weights; remove the older of the two"


def shards(folder, tensors, suffix="safetensors"):
    """Two shards and their index."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    weight_map = {}
    for i in range(2):
        part = {name: tensors[name] for name in sorted(tensors)[i::2]}
        file = folder / f"{stem}-{i + 1:05d}-of-00002.{suffix}"
        save_file(part, file) if suffix == "safetensors" else torch.save(part, file)
        weight_map |= dict.fromkeys(part, file.name)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def older(tensors):
    return {name: x + 0.5 if "layernorm" in name else x for name, x in tensors.items()}


def assert_same_vlm(request, tiny_state):
    state = read_state(open_request(request))
    for path, value in state.items():
        np.testing.assert_array_equal(value, tiny_state[path], err_msg=path)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("sharded_bin", [False, True])
def test_safetensors_win_over_bin_and_the_other_is_named(request_for, copy, tiny_state, capfd, sharded, sharded_bin):
    vlm = copy("vlm")
    tensors = load_file(vlm / "model.safetensors")
    if sharded:
        shards(vlm, tensors)
        (vlm / "model.safetensors").unlink()
    if sharded_bin:
        shards(vlm, older(tensors), "bin")
    else:
        torch.save(older(tensors), vlm / "pytorch_model.bin")
    assert_same_vlm(request_for(vlm=vlm), tiny_state)
    run(request_for(vlm=vlm))
    named = "pytorch_model-00001-of-00002.bin" if sharded_bin else "pytorch_model.bin"
    assert f"not read, beside {vlm}" in (text := capfd.readouterr().err)
    assert named in text


def test_a_single_file_and_shards_that_differ_are_refused_and_equal_ones_are_not(
    request_for, problems_of, copy, tiny_state
):
    vlm = copy("vlm")
    tensors = load_file(vlm / "model.safetensors")
    shards(vlm, tensors)
    assert_same_vlm(request_for(vlm=vlm), tiny_state)
    shards(vlm, older(tensors))
    assert f"{vlm}: model.safetensors and the shards of model.safetensors.index.json {BOTH}" in problems_of(
        request_for(vlm=vlm)
    )
    shards(vlm, {name: x for name, x in tensors.items() if name != "model.norm.weight"})
    assert BOTH in problems_of(request_for(vlm=vlm))


def test_the_same_holds_for_bin_files(request_for, problems_of, copy, tiny_state):
    vlm = copy("vlm")
    tensors = load_file(vlm / "model.safetensors")
    (vlm / "model.safetensors").unlink()
    torch.save(tensors, vlm / "pytorch_model.bin")
    shards(vlm, tensors, "bin")
    assert_same_vlm(request_for(vlm=vlm), tiny_state)
    shards(vlm, older(tensors), "bin")
    assert BOTH in problems_of(request_for(vlm=vlm))


def test_an_index_whose_shards_are_gone_is_named_and_one_of_the_single_file_is_its_own(request_for, copy, tiny_state):
    vlm = copy("vlm")
    names = load_file(vlm / "model.safetensors")
    index = vlm / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}))
    assert index.name in " ".join(open_request(request_for(vlm=vlm)).notes)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")}))
    assert_same_vlm(request_for(vlm=vlm), tiny_state)


def test_shards_of_an_earlier_split_are_named(request_for, copy, tiny_state):
    vlm = copy("vlm")
    tensors = load_file(vlm / "model.safetensors")
    (vlm / "model.safetensors").unlink()
    shards(vlm, tensors)
    save_file(older(tensors), vlm / "model-00001-of-00003.safetensors")
    assert_same_vlm(request_for(vlm=vlm), tiny_state)
    assert "model-00001-of-00003.safetensors" in " ".join(open_request(request_for(vlm=vlm)).notes)


def test_an_older_bin_adapter_and_an_adapter_that_is_not_asked_for_are_named(request_for, copy, tiny, tiny_state):
    folder, vlm = copy("adapter"), copy("vlm")
    stale = {name: x + 1 for name, x in load_file(folder / "adapter_model.safetensors").items()}
    torch.save(stale, folder / "adapter_model.bin")
    assert_same_vlm(request_for(adapter=folder), tiny_state)
    assert "adapter_model.bin" in " ".join(open_request(request_for(adapter=folder)).notes)
    for file in folder.iterdir():
        shutil.copy(file, vlm)
    assert "holds an adapter too, which is not applied" in " ".join(open_request(request_for(vlm=vlm)).notes)


def test_a_folder_without_weights_says_what_it_holds(request_for, problems_of, copy):
    vlm = copy("vlm")
    (vlm / "model.safetensors").rename(vlm / "weights.safetensors")
    assert "no weights: none of model.safetensors" in (text := problems_of(request_for(vlm=vlm)))
    assert "weights.safetensors" in text
