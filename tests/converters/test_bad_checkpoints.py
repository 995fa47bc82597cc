"""A bad checkpoint gives one error that names everything wrong and the file; nothing is left behind."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic import change_sam2, change_vlm

from converters.importing import run

ROOT = Path(__file__).parents[2]


def test_missing_misshapen_extra_and_nan_tensors_of_all_files_are_named_in_one_error(request_for, problems_of, copy):
    vlm, sam2 = copy("vlm"), copy("sam2_tiny.pt")
    copy("sam2_tiny.yaml")

    def spoil_vlm(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 64)
        tensors["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2)
        tensors["visual.blocks.1.attn.qkv.bias"][5] = float("nan")
        tensors["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(32, 64, dtype=torch.int32)

    def spoil_sam2(state):
        del state["sam_prompt_encoder.no_mask_embed.weight"]
        state["memory_encoder.out_proj.bias"][0] = float("inf")

    change_vlm(vlm, spoil_vlm)
    change_sam2(sam2, spoil_sam2)
    text = problems_of(request_for(vlm=vlm, sam2=sam2))
    assert text.startswith("7 problems")
    for line in (
        f"{vlm / 'model.safetensors'}: missing tensor model.norm.weight (64,) (for text.norm.scale)",
        "tensor model.layers.1.mlp.up_proj.weight has shape (3, 64), expected (128, 64) (for text.layers.mlp.up_proj",
        "extra tensor model.layers.7.mlp.up_proj.weight (2,)",
        "tensor visual.blocks.1.attn.qkv.bias holds NaN or infinity",
        "tensor model.layers.0.self_attn.k_proj.weight has dtype int32",
        f"{sam2}: missing tensor sam_prompt_encoder.no_mask_embed.weight (1, 32)",
        f"{sam2}: tensor memory_encoder.out_proj.bias holds NaN or infinity",
    ):
        assert line in text


def test_every_nan_is_named_when_nothing_else_is_wrong(request_for, problems_of, copy):
    vlm = copy("vlm")

    def spoil(tensors):
        tensors["model.embed_tokens.weight"][3, 4] = float("nan")
        tensors["model.layers.2.mlp.down_proj.weight"][0, 0] = -float("inf")

    change_vlm(vlm, spoil)
    text = problems_of(request_for(vlm=vlm))
    assert text.startswith("2 problems")
    assert "model.embed_tokens.weight holds NaN" in text
    assert "model.layers.2.mlp.down_proj.weight holds NaN" in text


def test_values_that_do_not_fit_the_dtype_asked_for_are_refused(request_for, problems_of, copy):
    vlm = copy("vlm")

    def enlarge(tensors):
        tensors["model.norm.weight"].fill_(1e6)
        tensors["visual.merger.ln_q.bias"].fill_(-7e4)

    change_vlm(vlm, enlarge)
    text = problems_of(request_for(vlm=vlm, dtype="float16"))
    assert text.startswith("2 problems")
    assert "tensor model.norm.weight has values too large for float16" in text
    assert "tensor visual.merger.ln_q.bias has values too large for float16" in text
    run(request_for(vlm=vlm, dtype="bfloat16"))


@pytest.mark.parametrize("keep", [0, 5, 1000, -7])
@pytest.mark.parametrize("name", ["vlm/model.safetensors", "sam2_tiny.pt", "sam2_reducer_and_vlm_layer.pth"])
def test_truncated_files_are_named(request_for, problems_of, copy, tiny, name, keep):
    copied = copy(name.split("/")[0])
    file = copied / "model.safetensors" if "/" in name else copied
    file.write_bytes(file.read_bytes()[:keep])
    option = {"v": "vlm", "s": "sam2"}[name[0]] if "reducer" not in name else "connector"
    text = problems_of(request_for(**{option: copied}))
    assert text.startswith("1 problem ")
    assert str(file) in text
    assert "truncated" in text or "empty" in text


def test_several_unreadable_files_are_all_named(request_for, problems_of, copy, tmp_path):
    vlm, sam2 = copy("vlm"), copy("sam2_tiny.pt")
    sam2.write_bytes(b"")
    (vlm / "model.safetensors").write_bytes(b"\x05")
    (vlm / "config.json").write_text("{")
    text = problems_of(request_for(vlm=vlm, sam2=sam2, connector=tmp_path / "absent.pth"))
    for part in (
        "sam2_tiny.pt: the file is empty",
        "model.safetensors: truncated",
        "config.json: expected",
        "absent.pth: no such",
    ):
        assert part in text


def test_a_longer_file_and_a_lying_header_are_refused(request_for, problems_of, copy):
    vlm = copy("vlm")
    file = vlm / "model.safetensors"
    good = file.read_bytes()
    file.write_bytes(good + b"\0")
    assert "longer than its header says" in problems_of(request_for(vlm=vlm))
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    header["model.norm.weight"]["shape"] = [65]
    encoded = json.dumps(header).encode()
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + good[8 + length :])
    text = problems_of(request_for(vlm=vlm))
    assert "tensor model.norm.weight: damaged header entry" in text


def test_shards_that_are_absent_or_disagree_with_the_index_are_named(request_for, problems_of, copy):
    vlm = copy("vlm")
    tensors = load_file(vlm / "model.safetensors")
    (vlm / "model.safetensors").unlink()
    names = list(tensors)
    save_file({k: tensors[k] for k in names[:30]}, vlm / "a.safetensors")
    weight_map = dict.fromkeys(names[:29], "a.safetensors") | {names[40]: "a.safetensors", names[50]: "b.safetensors"}
    (vlm / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    text = problems_of(request_for(vlm=vlm))
    assert f"{vlm / 'b.safetensors'}: no such file" in text
    assert f"missing tensor {names[40]}, which model.safetensors.index.json places there" in text
    assert f"extra tensor {names[29]}" in text


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("EXECUTED",)


def test_nothing_in_a_pickle_is_executed(request_for, problems_of, copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sam2 = copy("sam2_tiny.pt")
    torch.save({"model": {"x": torch.zeros(1), "y": Exploit()}}, sam2)
    assert str(sam2) in problems_of(request_for(sam2=sam2))
    sam2.write_bytes(pickle.dumps(Exploit()))
    assert str(sam2) in problems_of(request_for(sam2=sam2))
    assert not (tmp_path / "EXECUTED").exists()


def test_things_that_are_not_tensors_are_named(request_for, problems_of, copy):
    sam2 = copy("sam2_tiny.pt")
    change_sam2(sam2, lambda state: state.update(step=3))
    assert f"{sam2}: step is a int, expected a tensor" in problems_of(request_for(sam2=sam2))
    torch.save([torch.zeros(2)], sam2)
    assert "holds a list, expected a dict" in problems_of(request_for(sam2=sam2))


def test_layers_of_different_dtypes_cannot_be_kept_but_can_be_converted(request_for, problems_of, copy):
    vlm = copy("vlm")
    name = "model.layers.1.mlp.up_proj.weight"
    change_vlm(vlm, lambda tensors: tensors.update({name: tensors[name].to(torch.bfloat16)}))
    text = problems_of(request_for(vlm=vlm))
    assert "the layers of text.layers.mlp.up_proj.kernel have different dtypes (bfloat16, float32)" in text
    run(request_for(vlm=vlm, dtype="float32"))


def test_finite_looks_at_every_value():
    from converters.plan import finite

    array = np.zeros((1 << 24) + 5, np.float32)
    assert finite(array)
    array[-1] = np.nan
    assert not finite(array)
