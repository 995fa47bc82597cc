"""Rotary position embedding (arXiv 2104.09864) in Qwen2-VL's two forms: 3-D for text, 2-D for image patches.

Angles are float32 whatever the activations are: at position 10,000 a bfloat16 angle would be off by whole turns.

Letters: R rows, L positions, H heads, D head size.
"""

import jax.numpy as jnp
import numpy as np


def mrope_angles(positions, head_dim: int, theta: float, sections: tuple[int, int, int]):
    """Angles of M-RoPE (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Of the head_dim / 2 frequencies, the first `sections[0]` turn with the temporal position, the next `sections[1]`
    with the height, the last `sections[2]` with the width. Equal positions on the three axes are plain 1-D RoPE.

    Args:
        positions: int[R, 3, L], (temporal, height, width).

    Returns:
        float32[R, L, head_dim / 2].

    Raises:
        ValueError: the sections do not add up to head_dim / 2, or there are not three axes.
    """
    if len(sections) != 3 or sum(sections) != head_dim // 2 or head_dim % 2:
        raise ValueError(f"mrope_section {sections}: three sizes that add up to head_dim / 2 = {head_dim / 2} expected")
    if positions.ndim != 3 or positions.shape[1] != 3:
        raise ValueError(f"positions {positions.shape}: expected [rows, 3, length] (temporal, height, width)")
    axis_of_frequency = np.repeat(np.arange(3), sections)
    positions_RLF = jnp.moveaxis(positions, 1, 2)[..., axis_of_frequency].astype(jnp.float32)
    return positions_RLF * _frequencies(head_dim, theta)


def patch_angles(patch_yx, head_dim: int, theta: float = 10000.0):
    """Angles of the vision tower's 2-D RoPE: half of the frequencies turn with the row, half with the column.

    Args:
        patch_yx: int[R, P, 2], row and column of each patch in its image.

    Returns:
        float32[R, P, head_dim / 2]: (row angles, column angles), each over head_dim / 4 frequencies.

    Raises:
        ValueError: head_dim is not a multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(f"head size {head_dim}: the vision tower's 2-D rotary embedding needs a multiple of 4")
    angles = patch_yx[..., None].astype(jnp.float32) * _frequencies(head_dim // 2, theta)
    return angles.reshape(*patch_yx.shape[:-1], head_dim // 2)


def rotate(x_RLHD, angles):
    """Turns the pairs (d, d + D/2) of every head by angles[R, L, D/2]; float32 inside, the dtype of x outside."""
    first, second = jnp.split(x_RLHD.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_RLHD.dtype)


def rotate_columns(x_RHDL, angles):
    """`rotate` of arrays whose length comes last, which leaves that as it is."""
    first, second = jnp.split(x_RHDL.astype(jnp.float32), 2, axis=-2)
    cos, sin = (f(angles).swapaxes(1, 2)[:, None] for f in (jnp.cos, jnp.sin))
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-2)
    return turned.astype(x_RHDL.dtype)


def _frequencies(dim: int, theta: float) -> np.ndarray:
    """theta^(-2i/dim) for i in 0 .. dim/2 - 1, rounded as float32 arithmetic rounds them in PyTorch."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.float32(1.0) / np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
