"""The rule engine, and the weight tables against the names and shapes of the published sizes."""

import json

import numpy as np
import pytest

from converters import adapter, connector, qwen2_vl, rules, sam2
from converters.plan import component_of
from converters.rules import LeftOut, Rule, cover, expand
from converters.sources import ArraySource
from virtue_jax.config import AdapterConfig, HieraConfig, Sam2Config, VirtueConfig
from virtue_jax.model_directory import parameter_shapes

SHAPES = {
    "same": (rules.same, (3, 4)),
    "transposed": (rules.transposed, (3, 4)),
    "conv_kernel": (rules.conv_kernel, (5, 3, 2, 4)),
    "pointwise_kernel": (rules.pointwise_kernel, (5, 3, 1, 1)),
    "without_leading": (rules.without_leading, (1, 6)),
    "without_two_leading": (rules.without_two_leading, (1, 1, 6)),
    "channels_last": (rules.channels_last, (1, 5, 3, 4)),
    "video_patches": (rules.video_patches(3, 4), (7, 3, 2, 4, 4)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_transforms_invert_and_know_their_source_shape(name):
    transform, shape = SHAPES[name]
    source = np.random.default_rng(0).standard_normal(shape)
    target = transform.forward(source)
    np.testing.assert_array_equal(transform.inverse(target), source)
    assert transform.source_shape(target.shape) == shape


def test_conv_and_patch_transforms_put_every_value_where_the_model_reads_it():
    conv = np.random.default_rng(0).standard_normal((5, 3, 2, 4))
    assert rules.conv_kernel.forward(conv)[1, 2, 0, 4] == conv[4, 0, 1, 2]
    video = np.random.default_rng(0).standard_normal((7, 3, 2, 4, 4))
    packed = rules.video_patches(3, 4).forward(video)
    assert packed.shape == (2, 48, 7)
    assert packed[1, 2 * 16 + 3 * 4 + 1, 6] == video[6, 2, 1, 3, 1]


def test_a_stacked_rule_packs_layers_in_order_and_unpacks_them():
    (entry,) = expand([Rule("a.{i}.proj", "b.proj", rules.linear_without_bias, range(2, 5))])
    assert entry.target == "b.proj.kernel"
    assert entry.sources == ("a.2.proj.weight", "a.3.proj.weight", "a.4.proj.weight")
    tensors = [np.full((2, 3), i) for i in range(3)]
    packed = entry.pack(tensors)
    assert packed.shape == (3, 3, 2)
    for (name, got), wanted in zip(entry.unpack(packed), tensors, strict=True):
        np.testing.assert_array_equal(got, wanted, err_msg=name)


def test_a_target_with_the_layer_index_is_not_stacked_and_no_layers_are_no_entries():
    entries = expand([Rule("a.{i}", "b.{i}", rules.norm, range(2))])
    assert [e.target for e in entries] == ["b.0.scale", "b.1.scale", "b.0.bias", "b.1.bias"]
    assert expand([Rule("a.{i}", "b", rules.norm, range(0))]) == []


def test_cover_names_everything_wrong_at_once():
    entries = expand([Rule("a", "x", rules.linear), Rule("c", "y", rules.linear_without_bias)])
    source = ArraySource({"a.weight": (2, 3), "c.weight": (9, 9), "junk": (1,), "old": (1,)}, "file.bin")
    targets = {"x.kernel": (3, 2), "x.bias": (2,), "y.kernel": (4, 5), "z.scale": (7,)}
    problems, carried = cover(entries, [LeftOut("old", "unused")], source.infos, targets, "file.bin")
    assert carried == ["old"]
    text = "\n".join(problems)
    assert len(problems) == 4
    assert "missing tensor a.bias (2,)" in text
    assert "tensor c.weight has shape (9, 9), expected (5, 4)" in text
    assert "extra tensor junk" in text
    assert "no rule fills parameter z.scale" in text


def test_cover_refuses_a_table_that_fills_a_parameter_twice():
    entries = expand([Rule("a", "x", rules.rms_norm), Rule("b", "x", rules.rms_norm)])
    source = ArraySource({"a.weight": (2,), "b.weight": (2,)})
    problems, _ = cover(entries, [], source.infos, {"x.scale": (2,)}, "f")
    assert problems == ["f: the rules name target x.scale 2 times"]


def listing(golden, name: str) -> dict:
    return json.loads((golden / "full_size" / f"{name}.json").read_text())


def full_size_config(golden, sam_size: str, qwen_size: str, with_adapter: bool) -> VirtueConfig:
    sam_source = ArraySource(listing(golden, f"sam2.1_hiera_{sam_size}")["tensors"])
    config = listing(golden, f"qwen2_vl_{qwen_size}_config")
    vision, text = qwen2_vl.read_geometry(config, "config.json", has_lm_head=False)
    return VirtueConfig(
        sam2=sam2.read_geometry(sam_source.infos, "sam2.pt"),
        vision=vision,
        text=text,
        adapter=AdapterConfig() if with_adapter else None,
    )


def assert_covers(entries, left_out, tensors, targets, name: str) -> list[str]:
    source = ArraySource(tensors)
    mine = {path: shape for path, shape in targets.items() if component_of(path) == name}
    problems, carried = cover(entries, left_out, source.infos, mine, name)
    assert problems == []
    assert mine
    return carried


@pytest.mark.parametrize("size", ["s", "b+", "l"])
def test_published_sam2_is_covered_exactly(golden, size):
    config = full_size_config(golden, size, "2b", False)
    tensors = listing(golden, f"sam2.1_hiera_{size}")["tensors"]
    entries = expand(sam2.rules(config.sam2))
    carried = assert_covers(entries, sam2.LEFT_OUT, tensors, parameter_shapes(config), "sam2")
    assert len(carried) + sum(len(e.sources) for e in entries) == len(tensors)
    assert sam2.incomplete(ArraySource(tensors).infos, "sam2.pt") == []


@pytest.mark.parametrize("size", ["2b", "7b"])
@pytest.mark.parametrize("kind", ["qwen2_vl_{}_instruct", "virtue_merged_{}"])
def test_published_qwen2_vl_and_merged_virtue_are_covered_exactly(golden, size, kind):
    config = full_size_config(golden, "b+", size, False)
    tensors = listing(golden, kind.format(size))["tensors"]
    entries = expand(qwen2_vl.rules(config.vision, config.text))
    carried = assert_covers(entries, qwen2_vl.left_out(config.text), tensors, parameter_shapes(config), "vlm")
    assert carried == (["lm_head.weight"] if size == "7b" else [])


@pytest.mark.parametrize("size", ["2b", "7b"])
def test_published_adapters_and_connectors_are_covered_exactly(golden, size):
    config = full_size_config(golden, "b+", size, True)
    targets = parameter_shapes(config)
    stored = listing(golden, f"virtue_adapter_{size}_r8")["tensors"]
    tensors = {adapter.published_name(name): shape for name, shape in stored.items()}
    assert_covers(expand(adapter.rules(config.adapter, 28)), [], tensors, targets, "adapter")
    stored = listing(golden, f"virtue_sam2_reducer_and_vlm_layer_{size}")["tensors"]
    tensors = {name.replace("/", "."): shape for name, shape in stored.items()}
    assert_covers(expand(connector.RULES), [], tensors, targets, "connector")


def test_published_sam2_sizes_have_the_geometry_of_their_yaml(golden):
    found = {}
    for size in ("s", "b+", "l"):
        source = ArraySource(listing(golden, f"sam2.1_hiera_{size}")["tensors"])
        found[size] = sam2.read_geometry(source.infos, "sam2.pt")
    small = HieraConfig(96, 1, (1, 2, 11, 2), (7, 10, 13), window_pos_embed_bkg_spatial_size=(7, 7))
    large = HieraConfig(144, 2, (2, 6, 36, 4), (23, 33, 43), (8, 4, 16, 8), (7, 7))
    assert found == {
        "s": Sam2Config(small),
        "b+": Sam2Config(HieraConfig(112, 2, (2, 3, 16, 3), (12, 16, 20))),
        "l": Sam2Config(large),
    }


def test_names_of_newer_transformers_map_to_the_published_ones():
    assert (
        qwen2_vl.published_name("model.language_model.layers.3.mlp.up_proj.weight")
        == "model.layers.3.mlp.up_proj.weight"
    )
    assert qwen2_vl.published_name("model.visual.blocks.0.norm1.bias") == "visual.blocks.0.norm1.bias"
    assert qwen2_vl.published_name("lm_head.weight") == "lm_head.weight"
    stored = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    name = adapter.published_name(stored)
    assert adapter.stored_name(name) == stored
    assert adapter.published_name(adapter.current_name(name)) == name
    assert adapter.current_name(name) == "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
