"""Adapters of several ranks and scales, saved by PEFT on a tiny Qwen2-VL: imported, they compute what PEFT computes."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, Qwen2VLForConditionalGeneration

from converters.exporting import ExportRequest
from converters.exporting import run as export
from converters.importing import ImportRequest, open_request, run
from converters.plan import read_state
from converters.qwen2_vl import published_name
from virtue_jax.config import AdapterConfig
from virtue_jax.model_directory import load_config

pytestmark = pytest.mark.parity

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]
BELOW = r"model.language_model.layers.[01].self_attn"
CASES = {
    "rank-stabilised": {"r": 4, "use_rslora": True},
    "rank-stabilised, odd rank": {"r": 3, "use_rslora": True},
    "alpha by name": {"r": 4, "alpha_pattern": {"q_proj": 16}},
    "alpha, not a power of two": {"r": 4, "alpha_pattern": {"q_proj": 12, "v_proj": 5}},
    "rank by name": {"r": 4, "rank_pattern": {"down_proj": 8, "k_proj": 2}},
    "rank and alpha by name": {"r": 4, "rank_pattern": {"q_proj": 16}, "alpha_pattern": {"q_proj": 32}},
    "by expression": {"r": 4, "alpha_pattern": {rf"{BELOW}.(q|k)_proj": 2, "q_proj": 32}},
    "by whole path": {"r": 4, "rank_pattern": {rf"^{BELOW}.v_proj": 1}, "alpha_pattern": {"layers.2.mlp.down_proj": 1}},
    "everything": {
        "r": 4,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 9, "o_proj": 16},
        "alpha_pattern": {"v_proj": 3},
    },
}
# Of the largest value: the few roundings of two products and one sum in float32.
TOLERANCE = 2e-6


def adapted(vlm, folder, dora=False, kind=Qwen2VLForConditionalGeneration, **options):
    """An adapter of random weights on the tiny Qwen2-VL, saved by PEFT; the adapted model."""
    torch.manual_seed(5)
    config = LoraConfig(**({"lora_alpha": 8, "target_modules": TARGETS, "use_dora": dora} | options))
    model = get_peft_model(kind.from_pretrained(vlm, dtype=torch.float32), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
            elif "lora_magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
    model.save_pretrained(folder)
    return model


def request(tiny, out, adapter, **changes) -> ImportRequest:
    files = dict(vlm=tiny / "vlm", sam2=tiny / "sam2_tiny.pt", connector=tiny / "sam2_reducer_and_vlm_layer.pth")
    return ImportRequest(out=out, adapter=adapter, **(files | changes))


def assert_merges_alike(model, theirs):
    """Every adapted kernel, merged by our export, is the one that PEFT merges."""
    out = model.parent / "merged"
    export(ExportRequest(model=model, out=out, merge_adapter=True))
    ours = load_file(out / "model.safetensors")
    wanted = {published_name(name): x for name, x in theirs.merge_and_unload().state_dict().items()}
    adapted_kernels = [name for name in ours if name.split(".")[-2] in TARGETS and name.endswith(".weight")]
    assert len(adapted_kernels) == 3 * len(TARGETS)
    for name in adapted_kernels:
        atol = TOLERANCE * wanted[name].abs().max().item()
        torch.testing.assert_close(ours[name], wanted[name], rtol=0, atol=atol, msg=name)


@pytest.fixture(scope="module")
def tiny(golden):
    return golden / "tiny"


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_an_imported_adapter_computes_what_pefts_does(tiny, tmp_path, case, dora):
    theirs = adapted(tiny / "vlm", tmp_path / "adapter", dora, **CASES[case])
    run(request(tiny, tmp_path / "model", tmp_path / "adapter"))
    assert_merges_alike(tmp_path / "model", theirs)


@pytest.mark.parametrize("dora", [False, True])
def test_patterns_are_matched_on_the_paths_of_the_model_that_peft_saw(tiny, tmp_path, dora):
    options = {"r": 4, "rank_pattern": {r"^language_model.layers.0.self_attn.q_proj": 8}}
    theirs = adapted(tiny / "vlm", tmp_path / "adapter", dora, AutoModel, **options)
    run(request(tiny, tmp_path / "model", tmp_path / "adapter"))
    assert load_config(tmp_path / "model").adapter.rank == 8
    assert_merges_alike(tmp_path / "model", theirs)


@pytest.mark.parametrize("dora", [False, True])
def test_what_is_exported_again_is_a_plain_adapter_that_peft_computes_alike(tiny, tmp_path, dora):
    theirs = adapted(tiny / "vlm", tmp_path / "adapter", dora, **CASES["everything"])
    run(request(tiny, tmp_path / "model", tmp_path / "adapter"))
    export(ExportRequest(model=tmp_path / "model", out=tmp_path / "out"))
    values = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert (values["r"], values["use_rslora"]) == (16, False)
    assert not values.get("rank_pattern") and not values.get("alpha_pattern")
    base = Qwen2VLForConditionalGeneration.from_pretrained(tiny / "vlm", dtype=torch.float32)
    again = PeftModel.from_pretrained(base, tmp_path / "out/adapter")
    ids = torch.arange(40).reshape(2, 20) * 7 % 1000
    with torch.no_grad():
        one, other = (m.eval()(input_ids=ids, output_hidden_states=True).hidden_states[-1] for m in (theirs, again))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_uniform_rank_stabilised_adapter_keeps_every_bit(tiny, tmp_path):
    adapted(tiny / "vlm", tmp_path / "adapter", r=4, use_rslora=True)
    opened = open_request(request(tiny, tmp_path / "model", tmp_path / "adapter"))
    assert opened.config.adapter == AdapterConfig(4, 16.0, 0.0, False, tuple(TARGETS))
    state, stored = read_state(opened), load_file(tmp_path / "adapter/adapter_model.safetensors")
    name = "base_model.model.model.language_model.layers.1.self_attn.q_proj.lora_B.weight"
    np.testing.assert_array_equal(state["text.layers.self_attn.q_proj.lora_b"][1].T, stored[name].numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("alpha", "exact"), [(32, True), (12, False)])
def test_a_narrow_adapter_is_scaled_exactly_or_widened(tiny, tmp_path, dtype, alpha, exact):
    adapted(tiny / "vlm", tmp_path / "adapter", r=4, alpha_pattern={"q_proj": alpha})
    file = tmp_path / "adapter/adapter_model.safetensors"
    narrow = {name: x.to(dtype) for name, x in load_file(file).items()}
    save_file(narrow, file)
    state = read_state(open_request(request(tiny, tmp_path / "model", tmp_path / "adapter")), "keep")
    ours = state["text.layers.self_attn.q_proj.lora_b"]
    name = "base_model.model.model.language_model.layers.2.self_attn.q_proj.lora_B.weight"
    wanted = narrow[name].float().numpy().T * np.float32(alpha / 8)
    np.testing.assert_array_equal(ours[2].astype(np.float32), wanted)
    assert ours.dtype.name == ("bfloat16" if exact and dtype is torch.bfloat16 else "float32")
