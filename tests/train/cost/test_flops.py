"""The FLOP formulas against XLA's own count of single layers, and against figures of the full-size model."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from full_size.shapes import config_of
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval as pe

from virtue_jax.batch import Batch, RowShape
from virtue_jax.config import AdapterConfig, HieraConfig, Numerics, Sam2Config, TextConfig, VirtueConfig, VisionConfig
from virtue_jax.data.config import DataConfig, RowGroup
from virtue_jax.data.packing.layout import batch_layout
from virtue_jax.models.hiera import Block
from virtue_jax.models.lora import adapt
from virtue_jax.models.parameters import abstract_virtue, bind, parameters
from virtue_jax.models.qwen2_text import TextLayer
from virtue_jax.models.qwen2_vision import Merger, VisionBlock
from virtue_jax.models.sam2 import Sam2
from virtue_jax.parallel.mesh import MeshConfig, make_mesh
from virtue_jax.train.cost.flops import executed_flops, forward_products, mfu, peak_flops, useful_flops
from virtue_jax.train.cost.work import Work, capacity
from virtue_jax.train.step.config import ModelConfig, TrainConfig
from virtue_jax.train.step.setup import setup

NUMERICS = Numerics()
TERA, GIGA = 1e12, 1e9

# XLA also counts norms, softmax, activations and residuals: up to about a percent and a half of these layers.
BELOW, ABOVE = 1.0, 1.02


@pytest.fixture(scope="module")
def two_b() -> VirtueConfig:
    return replace(config_of("2b"), adapter=AdapterConfig())


def trainable(config: VirtueConfig) -> set[str]:
    """What the published recipe trains, among the weights that are multiplied with."""
    linear = {path for products in forward_products(config, Work()).values() for path in products.linear}
    return {path for path in linear if path.startswith("connector.") or ".lora_" in path}


def counted(make, apply, *inputs) -> float:
    """XLA's count for a compiled layer, made of shapes only."""
    graphdef, state = nnx.split(nnx.eval_shape(make))
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in inputs]
    compiled = jax.jit(lambda state, *x: apply(nnx.merge(graphdef, state), *x)).lower(state, *shapes).compile()
    assert " while(" not in compiled.as_text()  # whose body XLA counts once
    return compiled.cost_analysis()["flops"]


def summed(products, prefix: str) -> float:
    return sum(flops for path, flops in products.linear.items() if path.startswith(prefix))


def test_a_vision_block_and_the_merger_as_xla_counts_them():
    config = VisionConfig(depth=1, embed_dim=640, num_heads=8, hidden_size=768)
    products = forward_products(_virtue(vision=config), Work(patches=512, patch_pairs=512**2))["vision"]

    def block(layer, x, angles, segments):
        return layer(x, angles, segments)

    x, f32, i32 = (1, 512, 640), jnp.float32, jnp.int32
    found = counted(
        lambda: VisionBlock(config, numerics=NUMERICS, rngs=nnx.Rngs(0)),
        block,
        (x, f32),
        ((1, 512, 40), f32),
        ((1, 512), i32),
    )
    assert BELOW < found / (summed(products, "vision.blocks.") + products.attention) < ABOVE
    merger = counted(lambda: Merger(config, numerics=NUMERICS, rngs=nnx.Rngs(0)), lambda m, x: m(x), (x, f32))
    assert BELOW < merger / summed(products, "vision.merger.") < ABOVE


@pytest.mark.parametrize("adapter", [None, AdapterConfig(rank=16)])
def test_a_text_layer_as_xla_counts_it(adapter):
    text = _text(hidden_size=768, intermediate_size=2048, num_attention_heads=6, num_key_value_heads=2)
    config = _virtue(text=text, adapter=adapter)
    products = forward_products(config, Work(tokens=512, token_pairs=512**2))["text"]

    def make():
        layer = TextLayer(text, numerics=NUMERICS, rngs=nnx.Rngs(0))
        if adapter is not None:
            adapt(layer, adapter, numerics=NUMERICS, rngs=nnx.Rngs(0))
        return layer

    found = counted(
        make,
        lambda layer, x, angles, segments: layer(x, angles, segments, None),
        ((1, 512, 768), jnp.float32),
        ((1, 512, 64), jnp.float32),
        ((1, 512), jnp.int32),
    )
    expected = summed(products, "text.layers.") + products.attention
    if adapter is not None:  # the column norms, which a step computes once and this lone layer by itself
        adapted = [(768, 768), (768, 256), (768, 256), (768, 768), (2048, 768)]
        expected += sum((2 * adapter.rank + 4) * d_in * d_out for d_in, d_out in adapted)
    assert BELOW < found / expected < ABOVE


@pytest.mark.parametrize(("window", "opens"), [(0, False), (14, False), (8, True)])
def test_a_hiera_block_as_xla_counts_it(window, opens):
    """A block of the third stage of four, on a 32 x 32 map: global, windowed with padding, opening the stage."""
    hiera = HieraConfig(
        embed_dim=192,
        num_heads=3,
        stages=(1, 1, 1 if opens else 2, 1),
        global_att_blocks=(3,) if window == 0 else (),
        window_spec=(8, 8, 14, 7),
    )
    side = 64 if opens else 32
    products = forward_products(_virtue(sam2=Sam2Config(hiera, image_size=512)), Work(images=2))["sam2"]
    fewer = replace(hiera, stages=(1, 1, 1, 1), global_att_blocks=())
    without = forward_products(_virtue(sam2=Sam2Config(fewer, image_size=512)), Work(images=2))["sam2"]
    name = "first" if opens else "rest"
    expected = summed(products, f"sam2.trunk.stages.2.{name}.")
    # 2 images x 4 FLOPs x queries x keys x width of the block alone.
    expected += 8 * 32**2 * 8**2 * 768 if opens else products.attention - without.attention
    d_in = 384 if opens else 768
    found = counted(
        lambda: Block(d_in, 768, 12, numerics=NUMERICS, rngs=nnx.Rngs(0)),
        lambda block, x: block(x, (window,)),
        ((2, side, side, d_in), jnp.float32),
    )
    assert BELOW < found / expected < ABOVE


def test_the_two_way_transformer_as_xla_counts_it():
    trunk = HieraConfig(embed_dim=16, num_heads=1, stages=(1, 1, 1, 1), global_att_blocks=())
    config = Sam2Config(trunk, d_model=1024, image_size=512)
    products = forward_products(_virtue(sam2=config), Work(prompts=2, prompt_tokens=10))["prompts"]
    found = counted(
        lambda: Sam2(config, numerics=NUMERICS, rngs=nnx.Rngs(0)).mask_decoder,
        lambda decoder, image, positions, sparse, present: decoder(image, positions, sparse, present)[0],
        ((2, 32, 32, 1024), jnp.float32),
        ((32, 32, 1024), jnp.float32),
        ((2, 5, 1024), jnp.float32),
        ((2, 5), jnp.bool_),
    )
    expected = summed(products, "sam2.") + products.attention
    assert BELOW < found / expected < ABOVE


def test_a_whole_forward_pass_of_the_full_size_model_has_the_products_that_are_counted(two_b):
    """Every matrix product and convolution of the traced model, scans as often as they turn."""
    config = replace(two_b, adapter=replace(two_b.adapter, use_dora=False))
    shape = RowShape(slots=1024, vision_rows=1, patches=1024, images=1, prompts=2, points=3, masks=True)
    layout = batch_layout(shape, sam_size=1024)
    batch = Batch(**{name: jax.ShapeDtypeStruct((1, *tail), dtype) for name, (dtype, tail) in layout.items()})
    model = abstract_virtue(config, NUMERICS)
    traced = jax.make_jaxpr(lambda params, batch: bind(model, params)(batch))(parameters(model), batch)
    used, _ = pe.dce_jaxpr(traced.jaxpr, [True])
    work = capacity(RowGroup(shape, rows=1))
    expected = sum(sum(p.linear.values()) + p.attention for p in forward_products(config, work).values())
    assert products_in(used) == pytest.approx(expected, rel=1e-3)


def products_in(jaxpr) -> float:
    """FLOPs of the matrix products and convolutions of a jaxpr."""
    total = 0.0
    for equation in jaxpr.eqns:
        turns = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jaxprs_in_params(equation.params):
            total += turns * products_in(inner) * (share_taken(inner) if equation.primitive.name == "cond" else 1)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            total += 2.0 * np.prod(equation.outvars[0].aval.shape) * depth
        elif equation.primitive.name == "conv_general_dilated":
            *window, d_in, _ = equation.invars[1].aval.shape
            total += 2.0 * np.prod(equation.outvars[0].aval.shape) * np.prod(window) * d_in
    return total


def share_taken(branch) -> float:
    """Of a loop's turns (`models.layers.branch_scope`)."""
    names = " ".join(str(equation.source_info.name_stack) for equation in branch.eqns)
    times, of = re.search(r"taken_(\d+)_of_(\d+)", names).groups()
    return int(times) / int(of)


def test_a_640x480_query_at_full_size(two_b):
    """391 vision tokens and 256 segmentation tokens beside 50 words; layer sizes as published, counted by hand."""
    image, query = 4 * 391, 256 + 391 + 50
    work = Work(query, query**2, image, image**2, images=1, prompts=1, prompt_tokens=3)
    flops = useful_flops(two_b, work, trainable(two_b))
    sizes = 1.3102e9  # parameters of the language model's linear layers
    assert flops.text == pytest.approx(4 * sizes * query + 6 * 28 * query**2 * 1536, rel=0.01)
    linear = 32 * 12 * 1280**2 + 588 * 1280 + (5120**2 + 5120 * 1536) / 4
    assert flops.vision == pytest.approx(2 * image * linear + 4 * 32 * image**2 * 1280)
    assert flops.sam2 / TERA == pytest.approx(0.635, rel=0.01)
    assert flops.prompts / GIGA == pytest.approx(2.28, rel=0.01)
    assert flops.total == flops.towers + flops.language_model


def test_the_language_model_s_share_of_a_compiled_2b_step(two_b):
    """Dots counted once in programs that the TPU compiler made, per chip: 16 pairs of 2 x 1024 slots, GradCache."""
    config = replace(two_b, adapter=AdapterConfig(dropout=0.0))
    for remat, expected in (("none", 258.83), ("layer", 344.99)):
        numerics = Numerics("bfloat16", "bfloat16", attention="splash", remat=remat)
        group = RowGroup(RowShape(slots=1024), rows=32, micro_batches=32)
        flops = executed_flops(config, [group], numerics, trainable(config))
        # Causal blocks of 1024 skip nothing here; the forward pass and its repetitions, five products for two back.
        attention = forward_products(config, capacity(group))["text"].attention
        passes = {"none": 2 + 2.5, "layer": 3 + 2.5}[remat]
        assert (flops.text - passes * attention) / TERA == pytest.approx(expected, rel=0.002)


def test_attention_must_be_resolved(two_b):
    with pytest.raises(ValueError, match=r"numerics\.attention 'auto' is not resolved yet"):
        executed_flops(two_b, [RowGroup(RowShape(slots=512), 4, 1)], Numerics(attention="auto"), ())


def test_a_step_at_high_resolution_has_the_useful_flops_that_were_predicted(two_b):
    """14.0 s at a v5e's peak, 61 % of it the frozen towers: 64 images of 9216 patches, S = 2816 (tpu.md section 7)."""
    work = Work(64 * 2816, 64 * 2816**2, 64 * 9216, 64 * 9216**2, images=64, prompts=64, prompt_tokens=192)
    flops = useful_flops(two_b, work, trainable(two_b))
    assert flops.total / peak_flops("TPU v5 lite") == pytest.approx(14.0, rel=0.01)
    assert flops.towers / flops.total == pytest.approx(0.61, abs=0.01)
    assert mfu(flops.total, seconds=28.0, peak=peak_flops("TPU v5e")) == pytest.approx(0.5, rel=0.01)


def test_a_trained_weight_costs_half_more_than_a_frozen_one_and_a_trained_tower_three_times(two_b):
    work = Work(100, 100**2, 400, 400**2, images=1, prompts=1, prompt_tokens=3)
    frozen = useful_flops(two_b, work, trainable(two_b))
    paths = {path for products in forward_products(two_b, work).values() for path in products.linear}
    everything = useful_flops(two_b, work, paths)
    assert everything.vision == pytest.approx(3 * frozen.vision)
    assert everything.sam2 == pytest.approx(3 * frozen.sam2)
    forward = forward_products(two_b, work)["text"]
    assert everything.text == pytest.approx(3 * sum(forward.linear.values()) + 1.5 * forward.attention)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    ("remat", "micro_batches"), [("none", 1), ("layer", 1), ("dots", 1), ("none", 4), ("layer", 4)]
)
def test_what_the_stages_execute_is_what_was_computed(dropout, remat, micro_batches):
    """Products of the traced stages of the real step, with all they compute twice."""
    numerics = Numerics(remat=remat)
    text = _text(hidden_size=256, intermediate_size=1024, num_attention_heads=2, num_key_value_heads=1)
    config = _virtue(text=replace(text, num_hidden_layers=3), adapter=AdapterConfig(dropout=dropout))
    config = replace(config, vision=replace(config.vision, embed_dim=64, num_heads=2, hidden_size=256))
    shape = RowShape(slots=256, examples=4, vision_rows=1, patches=64, images=1, prompts=2, points=3)
    rows = {"images": RowGroup(shape, 8, micro_batches)}
    run = setup(
        TrainConfig(ModelConfig(directory="none"), DataConfig({}, rows=rows), 300, 16, numerics=numerics),
        config,
        make_mesh(MeshConfig(), jax.devices()[:1]),
    )
    outputs = jax.eval_shape(run.towers, run.frozen, run.groups)
    arguments = run.state.trainable, run.state.step, run.frozen, run.embed_inputs(run.groups), outputs
    expected = executed_flops(config, rows.values(), numerics, set(run.state.trainable))
    assert used_products(run.gradients, *arguments) == pytest.approx(expected.language_model, rel=0.005)
    assert used_products(run.towers, run.frozen, run.groups) == pytest.approx(expected.towers, rel=0.03)


def used_products(stage, *arguments) -> float:
    traced = stage.trace(*arguments).jaxpr
    used, _ = pe.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    return products_in(used)


def test_recomputation_and_padding_are_executed_but_not_useful(two_b):
    group = RowGroup(RowShape(slots=512), 4, 2)
    executed = executed_flops(two_b, [group], Numerics(remat="layer"), trainable(two_b))
    full = useful_flops(two_b, capacity(group), trainable(two_b))
    half = useful_flops(two_b, Work(4 * 256, 4 * 256**2), trainable(two_b))
    assert executed.text > 1.9 * full.text > 3.8 * half.text


def test_micro_batches_must_be_chosen(two_b):
    with pytest.raises(ValueError, match="micro_batches of RowGroup"):
        executed_flops(two_b, [RowGroup(RowShape(slots=512), 4)], NUMERICS, ())


def test_an_unknown_device_has_no_peak():
    assert peak_flops("cpu") is None
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("TPU v5p") == 459e12


def _text(**sizes) -> TextConfig:
    ids = {"image_token_id": 1, "vision_start_token_id": 2, "vision_end_token_id": 3}
    return TextConfig(vocab_size=16, num_hidden_layers=1, mrope_section=(16, 24, 24), **ids, **sizes)


def _virtue(**parts) -> VirtueConfig:
    hiera = HieraConfig(embed_dim=16, num_heads=1, stages=(1, 1, 1, 1), global_att_blocks=())
    text = _text(hidden_size=16, intermediate_size=16, num_attention_heads=1, num_key_value_heads=1)
    vision = VisionConfig(depth=1, embed_dim=16, num_heads=1, hidden_size=16)
    return VirtueConfig(**({"sam2": Sam2Config(hiera), "vision": vision, "text": text} | parts))
