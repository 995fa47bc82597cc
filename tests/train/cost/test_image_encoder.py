"""What TPU kernels execute in SAM-2's image encoder beyond its products."""

from dataclasses import replace

import pytest
from full_size.shapes import config_of

from virtue_jax.config import HieraConfig, Sam2Config
from virtue_jax.train.cost.image_encoder import image_encoder, tpu_overhead, trunk_blocks

# Heads of 128, windows of 256 tokens: nothing to fill up.
WHOLE = Sam2Config(HieraConfig(128, 1, (2, 1, 2, 1), (4,), (16, 16, 16, 16)), image_size=1024)


def test_whole_tiles_of_tokens_and_heads_have_no_overhead():
    assert all(block.by_kernel("bfloat16") for block in trunk_blocks(WHOLE) if not block.is_global)
    assert tpu_overhead(WHOLE, 3, "bfloat16", runs=2, trained=False) == 0


def test_smaller_heads_are_filled_up_in_windows_and_in_global_attention():
    heads_of_64 = replace(WHOLE, hiera=replace(WHOLE.hiera, num_heads=2))
    squares = image_encoder(WHOLE, 1).attention
    assert tpu_overhead(heads_of_64, 1, "bfloat16", runs=1, trained=False) == pytest.approx(squares)
    assert tpu_overhead(heads_of_64, 3, "bfloat16", runs=2, trained=False) == pytest.approx(6 * squares)


def test_windows_of_a_trunk_that_trains_are_computed_once_more():
    windows = sum(sum(block.attention()) for block in trunk_blocks(WHOLE) if not block.is_global)
    assert tpu_overhead(WHOLE, 1, "bfloat16", runs=1, trained=True) == pytest.approx(windows)


def test_the_published_encoder_s_overhead():
    """GFLOP an image, by hand: 136 of windows (14 columns take 16, 196 keys 256, heads of 56 half of 128 lanes), 116 of
    three blocks of 4,096 tokens, whose heads of 56 take 128."""
    sam2 = config_of("2b").sam2
    blocks = [block for block in trunk_blocks(sam2) if block.is_global]
    assert len(blocks) == 3 and {(block.side, block.d_out // block.heads) for block in blocks} == {(64, 56)}
    everywhere = 3 * 4 * 64**4 * 448 * (128 / 56 - 1)
    assert everywhere == pytest.approx(116.0e9, rel=0.001)
    assert tpu_overhead(sam2, 1, "bfloat16", runs=1, trained=False) - everywhere == pytest.approx(135.8e9, rel=0.001)
