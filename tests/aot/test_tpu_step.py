"""The real TPU compiler on a whole training step, no TPU needed: what it takes, its kernels, what it exchanges.

A small model with the heads of the real ones (128 and 80), on eight v5e; the full-size runs are behind `make aot`.
"""

import io
import math
from dataclasses import replace

import pytest
from multidevice.tiny_step import IMAGE_ROW, TEXT_ROW, geometry, run_config
from rich.console import Console

from virtue_jax.aot import print_report, report
from virtue_jax.aot.compile_step import compile_step
from virtue_jax.aot.largest import largest_arrays
from virtue_jax.aot.roofline import program_cost
from virtue_jax.aot.slowest import slowest_lines
from virtue_jax.aot.topology import prepare_environment, topology_devices
from virtue_jax.chips import CHIPS
from virtue_jax.config import AdapterConfig, Numerics
from virtue_jax.data.config import RowGroup
from virtue_jax.models.hiera import GLOBAL
from virtue_jax.ops.window_kernel import NAME, plan
from virtue_jax.parallel.mesh import MeshConfig, make_mesh
from virtue_jax.train.cost.image_encoder import trunk_blocks
from virtue_jax.train.step.setup import setup

pytestmark = pytest.mark.slow
CHIP = CHIPS["v5e"]
DEVICES, MIB = 8, 2**20
# Rows of one length share a run of the language model; the text rows have their own.
IMAGES = replace(IMAGE_ROW, slots=256, patches=128)
TEXTS = replace(TEXT_ROW, slots=128)


def virtue_geometry():
    virtue = geometry()
    text = replace(
        virtue.text, hidden_size=256, num_attention_heads=2, num_key_value_heads=1, mrope_section=(16, 24, 24)
    )
    vision = replace(virtue.vision, embed_dim=160, num_heads=2, hidden_size=256)
    sam2 = replace(virtue.sam2, image_size=256)
    return replace(
        virtue, text=text, vision=vision, sam2=sam2, adapter=AdapterConfig(rank=4, targets=("q_proj", "down_proj"))
    )


@pytest.fixture(scope="module")
def compiled():
    prepare_environment()
    mesh = make_mesh(MeshConfig(), topology_devices("v5e:2x4"))
    numerics = Numerics(compute="bfloat16", params="bfloat16", attention="auto", remat="outputs")
    config = run_config(numerics=numerics)
    rows = {"images": RowGroup(IMAGES, 2 * DEVICES, 1), "text": RowGroup(TEXTS, DEVICES, 1)}
    run = setup(replace(config, data=replace(config.data, rows=rows, pixels="uint8")), virtue_geometry(), mesh)
    return run, compile_step(run, low_effort=True)


def test_the_step_fits_and_says_what_stays(compiled):
    run, step = compiled
    assert not any(stage.failure for stage in step.stages.values())
    assert set(step.resident) == {"frozen parameters", "trainable parameters", "optimizer", "batch", "next batch"}
    frozen = sum(math.prod(x.shape) * x.dtype.itemsize for x in run.frozen.values())
    assert frozen <= step.resident["frozen parameters"] < 1.5 * frozen + MIB
    gradients = step.stages["gradients"].memory
    assert gradients.peak >= gradients.arguments and gradients.temporaries < 64 * MIB


def test_attention_runs_in_kernels_of_the_target_and_nowhere_else(compiled):
    run, step = compiled
    costs = {name: program_cost(stage.program, run.mesh, CHIP) for name, stage in step.stages.items()}
    layers = run.state.trainable["text.layers.mlp.down_proj.magnitude"].shape[0]
    found = {
        (stage, kernel.name, kernel.shape[-1], kernel.causal): kernel.count
        for stage, cost in costs.items()
        for kernel in cost.kernels
        if (kernel.shape[2], kernel.shape[-1]) in ((IMAGES.patches, 80), (IMAGES.slots, 128))
    }
    depth = run.frozen["vision.blocks.attn.qkv.kernel"].shape[0]
    # Once forwards and once backwards: what the kernel gave is kept, not computed again.
    assert found == {
        ("towers", "splash_fwd", 80, False): depth,
        ("gradients", "splash_fwd", 128, True): layers,
        ("gradients", "splash_dkv", 128, True): layers,
    }
    assert costs["gradients"].terms.attention > 0


def test_windows_of_the_image_encoder_run_in_the_kernel_as_often_as_there_are_blocks(compiled):
    run, step = compiled
    found = program_cost(step.stages["towers"].program, run.mesh, CHIP).kernels
    windows = [kernel for kernel in found if kernel.name == NAME]
    images = sum(math.prod(batch.sam_images.shape[:2]) for batch in run.groups if batch.sam_images is not None)
    blocks = [block for block in trunk_blocks(virtue_geometry().sam2) if block.window != GLOBAL]
    plans = [plan((1, b.side, b.side, b.d_in), b.d_out, b.heads, b.window, b.opens, "bfloat16") for b in blocks]
    expected = sum(one.flops(images // DEVICES, b.side) for one, b in zip(plans, blocks, strict=True))
    assert sum(kernel.flops for kernel in windows) == expected
    assert all(kernel.bytes > 0 for kernel in windows)


def test_the_slowest_lines_are_named_and_add_up_to_the_roofline(compiled):
    run, step = compiled
    programs = {name: stage.program for name, stage in step.stages.items()}
    lines = slowest_lines(programs, CHIP, count=10_000)
    terms = [program_cost(program, run.mesh, CHIP).terms for program in programs.values()]
    for name, total in (
        ("seconds", sum(one.matrix + one.attention + one.memory for one in terms)),
        ("memory", sum(one.memory for one in terms)),
        ("flops", sum(one.flops for one in terms)),
        ("cycles", sum(one.cycles for one in terms)),
    ):
        assert math.isclose(sum(line[name] for line in lines), total, rel_tol=1e-9)
    assert [line["seconds"] for line in lines] == sorted((line["seconds"] for line in lines), reverse=True)
    sources = {line["source"] for line in lines[:20]}
    assert any(source.startswith("virtue_jax/models/layers.py:") for source in sources)
    assert not [line["source"] for line in lines if line["source"].startswith("/") or "site-packages" in line["source"]]


def test_data_parallel_steps_exchange_slots_and_gradients_and_nothing_else(compiled):
    run, step = compiled
    found = {
        stage: {one.kind for one in program_cost(compiled.program, run.mesh, CHIP).collectives}
        for stage, compiled in step.stages.items()
    }
    assert found["towers"] == found["update"] == set()
    assert found["gradients"] <= {"all-gather", "all-reduce", "reduce-scatter"}
    collectives = program_cost(step.stages["gradients"].program, run.mesh, CHIP).collectives
    assert {one.axes for one in collectives} == {"data"}
    slots = sum(group.rows * group.shape.examples for group in groups_of(run))
    embeddings = slots * 256 * 4
    gathered = sum(one.bytes for one in collectives if one.kind == "all-gather")
    assert embeddings * 7 / 8 <= gathered < 1.2 * embeddings  # and what tells slots apart
    gradients = sum(math.prod(x.shape) * 4 for x in run.state.trainable.values())
    reduced = sum(one.bytes for one in collectives if one.kind != "all-gather")
    assert gradients <= reduced < 2 * (gradients + 2 * embeddings)


def test_the_largest_arrays_are_named(compiled):
    run, step = compiled
    named = largest_arrays(run, step.traced, count=1000)
    assert [array.bytes for array in named] == sorted((array.bytes for array in named), reverse=True)
    sources = {array.source for array in named}
    assert "text.embed_tokens.embedding" in sources
    assert any(source.startswith("virtue_jax/") and ":" in source for source in sources)


def test_a_step_that_does_not_fit_is_told_with_its_largest_arrays(compiled):
    run, step = compiled
    small = replace(CHIP, hbm=4 * MIB)
    said = report._memory(step, run, small) | {"mesh": {"data": 4, "fsdp": 2, "tensor": 1}}
    assert not said["fits"] and said["memory"]["headroom"] < 0
    stays = sum(step.resident.values())
    assert said["memory"]["stages"]["update"]["peak"] >= stays
    told = io.StringIO()
    print_report._print_memory(said, Console(file=told, width=200))
    assert "largest arrays of one chip, intermediate ones before fsdp" in told.getvalue()
    assert said["memory"]["largest"][0]["source"] in told.getvalue()


def groups_of(run):
    return [RowGroup(replace(IMAGES, examples=batch.pool.shape[1]), len(batch.tokens)) for batch in run.groups]
