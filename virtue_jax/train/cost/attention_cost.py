"""What a step executes of an attention's square, by backend, length and head size."""

from virtue_jax.config import Numerics, VirtueConfig
from virtue_jax.data.config import RowGroup
from virtue_jax.ops.splash import FAST_SPLASH_BLOCK, LANES, largest_block
from virtue_jax.ops.triton_attention import LEAST_SIZE, tuning
from virtue_jax.ops.xla_attention import LOGITS_BYTES

TRITON_BACKWARD = 3.5  # seven products backward, two forward
SPLASH_BACKWARD = 2.5  # five, in one kernel


def attention_cost(config: VirtueConfig, group: RowGroup, numerics: Numerics, part: str) -> tuple[float, float]:
    """(share of the square that a forward pass computes, backward pass relative to it) of a part of `StepFlops`.

    SAM-2's image encoder on TPUs is counted by `train/cost/image_encoder.py`. Splash's blocks of causal attention count
    as 512 long at least. Blocks that Triton's kernel skips by segments count as executed: how many there are depends on
    the data.
    """
    heads, length = config.text.num_attention_heads, group.shape.slots
    head = config.text.head_dim
    if part == "vision":
        heads, length = config.vision.num_heads, group.shape.patches
        head = config.vision.embed_dim // heads
    elif part != "text":
        return 1.0, 2.0
    if numerics.attention == "xla":
        rows = group.rows * (group.shape.vision_rows if part == "vision" else 1) / group.micro_batches
        blocked = 4 * rows * heads * length**2 > LOGITS_BYTES
        return 1.0, 2.5 if blocked else 2.0  # the logits of a block are computed again
    if numerics.attention == "triton":
        block, padded = max(tuning(head, numerics.compute).forward[:2]), -(-head // LEAST_SIZE) * LEAST_SIZE / head
        return _causal_share(block, length) * padded if part == "text" else padded, TRITON_BACKWARD
    padded = -(-head // LANES) * LANES / head  # of the matrix unit
    # A smaller block than the fast one skips more of the square, but not more time.
    block = max(largest_block(length) or length, FAST_SPLASH_BLOCK)
    square = _causal_share(block, length) if part == "text" else 1.0
    return square * padded, SPLASH_BACKWARD


def _causal_share(block: int, length: int) -> float:
    """Of the square: blocks on and under the diagonal."""
    return (1 + min(block, length) / max(length, 1)) / 2
