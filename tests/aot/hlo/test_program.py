"""Compiled TPU programs are read for what they do. `programs/` holds what libtpu 0.0.42 printed for three small ones:

loop: v5e:2x2, mesh (data 2, fsdp 2): 8 layers tanh(x w), x bf16[4096, 2048] split over both, w bf16[8, 2048, 2048] over
fsdp, mean square, value and gradient, layers rematerialised. slices: the same on two slices, mesh (data 4, fsdp 2).
attention: one v5e, value and gradient of splash attention, 2 rows of 1,024, 12 query and 2 key heads of 128.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from jax.sharding import AxisType

from virtue_jax.aot.hlo.arithmetic import hbm_bytes, product_flops
from virtue_jax.aot.hlo.collectives import DCN, find_collectives
from virtue_jax.aot.hlo.program import read_program, trip_count
from virtue_jax.aot.roofline import program_cost
from virtue_jax.chips import CHIPS

V5E = CHIPS["v5e"]
LAYERS, WIDTH, ROWS = 8, 2048, 1024  # rows on one device of `loop`
ITEM = 2


def program(name: str):
    return read_program((Path(__file__).parent / f"programs/{name}.hlo").read_text())


def mesh(data: int, fsdp: int):
    """What `find_collectives` reads of a mesh over a v5e's devices, slices of 2 x 2."""
    places = [SimpleNamespace(coords=(n % 2, n // 2 % 2, 0), slice_index=n // 4) for n in range(data * fsdp)]
    devices = np.array(places, object).reshape(data, fsdp)
    return SimpleNamespace(devices=devices, axis_names=("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def test_loops_count_by_their_trips():
    loop = program("loop")
    trips = [trip_count(loop, one, where) for one, where, _ in loop.executed() if one.opcode == "while"]
    assert trips == [LAYERS, LAYERS]


def test_products_are_counted_exactly():
    loop = program("loop")
    flops = sum(times * product_flops(loop, one, where) for one, where, times in loop.executed())
    # Forward, again for the backward pass, and two products there.
    assert flops == 4 * LAYERS * 2 * ROWS * WIDTH * WIDTH


def test_a_loop_reads_one_layer_at_a_time():
    loop = program("loop")
    read = sum(times * hbm_bytes(loop, one, where) for one, where, times in loop.executed())
    stack = LAYERS * WIDTH * WIDTH * ITEM  # all layers' weights
    assert stack < read < 6 * stack  # whole stacks in every turn would be 16 and more


def test_weights_are_gathered_once_per_pass_over_fsdp():
    found = find_collectives(program("loop"), mesh(2, 2), V5E)
    gathers = [one for one in found if one.kind == "all-gather"]
    assert {one.axes for one in gathers} == {"fsdp"}
    assert sum(one.count for one in gathers) == 2 * LAYERS
    half = WIDTH * WIDTH * ITEM / 2  # what a device lacks of a layer, and what it sends of its own
    assert sum(one.bytes for one in gathers) == 2 * LAYERS * half


def test_what_passes_between_slices_is_told_apart():
    found = find_collectives(program("slices"), mesh(4, 2), V5E)
    between = [one for one in found if one.network == DCN]
    assert {(one.kind, one.axes) for one in between} == {("all-reduce", "slices")}
    assert sum(one.bytes for one in between) > LAYERS * WIDTH * WIDTH * ITEM / 4  # a device's share of the gradients
    gathers = [one for one in found if one.network != DCN and one.kind == "all-gather"]
    assert sum(one.count for one in gathers if one.axes == "fsdp") == 2 * LAYERS
    # One begins in a fusion and runs on in others: it counts once. Of the last layer's, nothing is left to hide behind.
    wide = {one.asynchronous: one.count for one in gathers if one.axes == "data+fsdp"}
    assert wide == {True: LAYERS - 1, False: 1}


FUSED = """
HloModule fused, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%all-reduce-scatter (p: f32[1024]) -> f32[512] {
  %p = f32[1024]{0} parameter(0)
  %all-reduce = f32[1024]{0} all-reduce(%p), replica_groups={{0,1},{2,3}}, to_apply=%sum
  %zero = s32[] constant(0)
  ROOT %slice = f32[512]{0} dynamic-slice(%all-reduce, %zero), dynamic_slice_sizes={512}
}

ENTRY %main (x: f32[1024]) -> f32[512] {
  %x = f32[1024]{0} parameter(0)
  ROOT %fusion = f32[512]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
}
"""


def test_a_collective_in_a_fusion_is_one():
    (found,) = find_collectives(read_program(FUSED), mesh(2, 2), V5E)
    assert (found.kind, found.axes, found.asynchronous, found.bytes) == ("all-reduce", "fsdp", False, 4096)


def test_attention_kernels_are_known_by_name_and_arithmetic():
    kernels = program_cost(program("attention"), mesh(2, 2), V5E).kernels
    square = 2 * 2 * 12 * 1024 * 1024 * 128  # one product of queries with keys, two rows
    assert {kernel.name: kernel.flops / square for kernel in kernels} == {
        "splash_fwd": 2.0,
        "splash_dkv": 4.0,
        "splash_dq": 3.0,
    }
    assert {kernel.shape for kernel in kernels} == {(2, 12, 1024, 1024, 128)}


def test_the_roofline_is_at_least_each_of_its_bounds():
    loop = program("loop")
    cost = program_cost(loop, mesh(2, 2), V5E)
    assert cost.terms.matrix == pytest.approx(cost.terms.flops / V5E.peak)
    assert cost.terms.roofline_seconds >= cost.terms.matrix + cost.terms.communication > cost.terms.matrix
    assert cost.terms.cycles_seconds > cost.terms.matrix


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        read_program("module {}")
