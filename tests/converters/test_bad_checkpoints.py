"""A bad checkpoint gives one error that names everything wrong and the file; nothing is left behind."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from converters.errors import CheckpointError
from converters.importing import run
from virtue_jax.checkpoint import load_config, load_model, read_head
from virtue_jax.config import Numerics

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(tiny, tmp_path):
    """`copy(name)`: a writable copy of a tiny checkpoint's file or folder."""

    def make(name: str) -> Path:
        target = tmp_path / name
        (shutil.copytree if (tiny / name).is_dir() else shutil.copyfile)(tiny / name, target)
        for path in [target, *target.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        return target

    return make


def change_vlm(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_sam2(file: Path, change) -> None:
    state = torch.load(file, weights_only=True)
    change(state["model"])
    torch.save(state, file)


def problems_of(request) -> str:
    """The one error's text; also: nothing was written."""
    with pytest.raises(CheckpointError) as caught:
        run(request)
    assert not request.out.exists()
    assert [path for path in request.out.parent.iterdir() if "incomplete" in path.name] == []
    return str(caught.value)


def test_missing_misshapen_extra_and_nan_tensors_of_all_files_are_named_in_one_error(request_for, copy):
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


def test_every_nan_is_named_when_nothing_else_is_wrong(request_for, copy):
    vlm = copy("vlm")

    def spoil(tensors):
        tensors["model.embed_tokens.weight"][3, 4] = float("nan")
        tensors["model.layers.2.mlp.down_proj.weight"][0, 0] = -float("inf")

    change_vlm(vlm, spoil)
    text = problems_of(request_for(vlm=vlm))
    assert text.startswith("2 problems")
    assert "model.embed_tokens.weight holds NaN" in text
    assert "model.layers.2.mlp.down_proj.weight holds NaN" in text


def test_values_that_do_not_fit_the_dtype_asked_for_are_refused(request_for, copy):
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
def test_truncated_files_are_named(request_for, copy, tiny, name, keep):
    copied = copy(name.split("/")[0])
    file = copied / "model.safetensors" if "/" in name else copied
    file.write_bytes(file.read_bytes()[:keep])
    option = {"v": "vlm", "s": "sam2"}[name[0]] if "reducer" not in name else "connector"
    text = problems_of(request_for(**{option: copied}))
    assert text.startswith("1 problem ")
    assert str(file) in text
    assert "truncated" in text or "empty" in text


def test_several_unreadable_files_are_all_named(request_for, copy, tmp_path):
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


def test_a_longer_file_and_a_lying_header_are_refused(request_for, copy):
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


def test_shards_that_are_absent_or_disagree_with_the_index_are_named(request_for, copy):
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


def test_nothing_in_a_pickle_is_executed(request_for, copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sam2 = copy("sam2_tiny.pt")
    torch.save({"model": {"x": torch.zeros(1), "y": Exploit()}}, sam2)
    assert str(sam2) in problems_of(request_for(sam2=sam2))
    sam2.write_bytes(pickle.dumps(Exploit()))
    assert str(sam2) in problems_of(request_for(sam2=sam2))
    assert not (tmp_path / "EXECUTED").exists()


def test_things_that_are_not_tensors_are_named(request_for, copy):
    sam2 = copy("sam2_tiny.pt")
    change_sam2(sam2, lambda state: state.update(step=3))
    assert f"{sam2}: step is a int, expected a tensor" in problems_of(request_for(sam2=sam2))
    torch.save([torch.zeros(2)], sam2)
    assert "holds a list, expected a dict" in problems_of(request_for(sam2=sam2))


def test_wrong_geometry_is_told_with_its_remedy(request_for, copy, tiny, tmp_path):
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


def test_a_file_that_is_no_sam2_and_one_without_its_tracking_parts_are_refused(request_for, copy, tiny):
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
        ({"tie_word_embeddings": False}, "missing tensor lm_head.weight"),
    ],
)
def test_a_config_that_does_not_fit_is_told(request_for, copy, change, message):
    vlm = copy("vlm")
    config = json.loads((vlm / "config.json").read_text()) | change
    (vlm / "config.json").write_text(json.dumps(config))
    assert message in problems_of(request_for(vlm=vlm))


def test_a_tied_head_that_differs_from_the_embedding_is_refused(request_for, copy):
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
        ({"use_rslora": True}, "use_rslora = True is not supported"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern = {'q_proj': 4} is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = ['lm_head'] is not supported"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3' is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' is not supported"),
        ({"brand_new_option": 3}, "brand_new_option = 3 is not supported"),
        ({"r": 0}, "r is 0, expected a positive number"),
        ({"r": 4}, "lora_A.weight has shape (8, 64), expected (4, 64)"),
        ({"use_dora": False}, "extra tensor model.layers.0.self_attn.q_proj.lora_magnitude_vector"),
    ],
)
def test_adapter_options_that_are_not_supported_are_named(request_for, copy, change, message):
    folder = copy("adapter")
    config = json.loads((folder / "adapter_config.json").read_text()) | change
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert message in problems_of(request_for(adapter=folder))


def test_an_adapter_on_some_layers_or_elsewhere_is_refused(request_for, copy):
    folder = copy("adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    prefix = "base_model.model."
    del tensors[f"{prefix}model.layers.1.self_attn.v_proj.lora_B.weight"]
    tensors[f"{prefix}visual.blocks.0.attn.qkv.lora_A.weight"] = torch.zeros(8, 32)
    save_file(tensors, folder / "adapter_model.safetensors")
    text = problems_of(request_for(adapter=folder))
    assert "missing tensor model.layers.1.self_attn.v_proj.lora_B.weight (32, 8)" in text
    assert "extra tensor visual.blocks.0.attn.qkv.lora_A.weight" in text


def test_layers_of_different_dtypes_cannot_be_kept_but_can_be_converted(request_for, copy):
    vlm = copy("vlm")
    name = "model.layers.1.mlp.up_proj.weight"
    change_vlm(vlm, lambda tensors: tensors.update({name: tensors[name].to(torch.bfloat16)}))
    text = problems_of(request_for(vlm=vlm))
    assert "the layers of text.layers.mlp.up_proj.kernel have different dtypes (bfloat16, float32)" in text
    run(request_for(vlm=vlm, dtype="float32"))


def command(request, *more: str) -> list[str]:
    argv = [sys.executable, "-m", "converters", "import", "--vlm", request.vlm, "--sam2", request.sam2]
    return [str(x) for x in [*argv, "--connector", request.connector, "--out", request.out, *more]]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


@pytest.mark.slow
@pytest.mark.parametrize("size", [60_000, 400_000])
def test_a_full_disk_leaves_nothing_new_and_the_previous_model_intact(request_for, size):
    """A cap on file sizes fails writes as a full disk does: 60 kB stops the parameters, 400 kB the carried tensors."""
    request = request_for()
    run(request)
    before = read_head(request.out)
    limit = f"import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
    argv = command(request, "--overwrite", "--seed", "5")
    argv[1:3] = ["-c", f"{limit}; runpy.run_module('converters', run_name='__main__', alter_sys=True)"]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{request.out} was not written" in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in request.out.parent.iterdir()] == ["model"]
    assert read_head(request.out) == before
    load_model(request.out, Numerics())


@pytest.mark.slow
@pytest.mark.parametrize("previous", [False, True])
def test_kill_9_leaves_nothing_that_loads_and_the_next_run_cleans_up(request_for, previous):
    request = request_for()
    if previous:
        run(request)
    process = subprocess.Popen(command(request, "--overwrite"), env=environment(), stderr=subprocess.DEVNULL)
    partial = wait_for_partial(request.out.parent, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert partial.exists()
    with pytest.raises(FileNotFoundError, match="not a model directory"):
        load_config(partial)
    assert request.out.exists() == previous
    if previous:
        load_model(request.out, Numerics())
    done = subprocess.run(command(request, "--overwrite"), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in request.out.parent.iterdir()] == ["model"]
    load_model(request.out, Numerics())


def wait_for_partial(parent: Path, process: subprocess.Popen) -> Path:
    """The unfinished directory, as soon as parameters are being written into it."""
    for _ in range(6000):
        for path in parent.glob(".model.incomplete.*"):
            if any(path.rglob("ocdbt.process_0")):
                return path
        assert process.poll() is None, "the import ended before it could be killed"
        time.sleep(0.01)
    raise AssertionError("no unfinished directory appeared")


def test_an_existing_directory_is_not_overwritten_unasked(request_for):
    request = request_for()
    request.out.mkdir()
    (request.out / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="--overwrite"):
        run(request)
    assert (request.out / "mine.txt").read_text() == "keep"


def test_finite_looks_at_every_value():
    from converters.plan import finite

    array = np.zeros((1 << 24) + 5, np.float32)
    assert finite(array)
    array[-1] = np.nan
    assert not finite(array)
