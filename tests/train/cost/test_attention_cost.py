"""What each attention backend executes of the square."""

from dataclasses import replace

import pytest
from full_size.shapes import config_of

from virtue_jax.batch import RowShape
from virtue_jax.config import AdapterConfig, Numerics, VirtueConfig
from virtue_jax.data.config import RowGroup
from virtue_jax.train.cost.attention_cost import attention_cost

SHAPE = RowShape(slots=2560, vision_rows=1, patches=5120, images=1, prompts=1, points=3)


@pytest.fixture(scope="module")
def two_b() -> VirtueConfig:
    return replace(config_of("2b"), adapter=AdapterConfig())


def cost(config, backend: str, part: str, shape: RowShape = SHAPE, compute: str = "bfloat16"):
    return attention_cost(config, RowGroup(shape, rows=1, micro_batches=1), Numerics(compute, compute, backend), part)


def test_products_of_whole_squares_compute_a_block_s_logits_again(two_b):
    assert cost(two_b, "xla", "text") == (1.0, 2.5)
    assert cost(two_b, "xla", "text", RowShape(slots=512)) == (1.0, 2.0)


def test_short_blocks_of_splash_count_as_blocks_of_512(two_b):
    """1,664 slots divide into blocks of 128 only; those skip more of the causal square, in no less time."""
    assert cost(two_b, "splash", "text", RowShape(slots=1664)) == pytest.approx(((1 + 512 / 1664) / 2, 2.5))


def test_splash_works_on_head_size_80_as_128(two_b):
    assert cost(two_b, "splash", "vision") == (1.6, 2.5)


def test_the_kernel_for_gpus_works_on_a_head_as_it_is_and_on_half_of_the_causal_square(two_b):
    assert cost(two_b, "triton", "vision") == (1.0, 3.5), "80 = 64 + 16"
    assert cost(two_b, "triton", "text") == ((1 + 128 / 2560) / 2, 3.5)
    assert cost(two_b, "triton", "text", compute="float32") == ((1 + 64 / 2560) / 2, 3.5)


def test_short_attention_of_sam2_is_no_kernel_s(two_b):
    assert {cost(two_b, backend, "prompts") for backend in ("xla", "splash", "triton")} == {(1.0, 2.0)}
