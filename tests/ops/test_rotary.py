"""Rotary embeddings from their definition, in both of Qwen2-VL's forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from virtue_jax.ops.rotary import mrope_angles, patch_angles, rotate

SECTIONS = (2, 3, 3)
THETA = 1e6


def test_each_section_turns_with_its_own_axis():
    positions = jnp.asarray([[[7], [100], [3000]]])
    angles = np.asarray(mrope_angles(positions, 16, THETA, SECTIONS))[0, 0]
    axis = np.repeat([7, 100, 3000], SECTIONS)
    np.testing.assert_allclose(angles, axis * THETA ** (-np.arange(8) / 8), rtol=2e-7)


def test_equal_positions_are_one_dimensional_rotary():
    line = jnp.arange(50)
    angles = mrope_angles(jnp.broadcast_to(line, (1, 3, 50)), 16, THETA, SECTIONS)
    np.testing.assert_allclose(angles[0], np.outer(line, THETA ** (-np.arange(8) / 8)), rtol=2e-7)


def test_patches_turn_by_row_then_by_column():
    angles = np.asarray(patch_angles(jnp.asarray([[[5, 9]]]), 16))[0, 0]
    frequencies = 10000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(angles, np.concatenate([5 * frequencies, 9 * frequencies]), rtol=2e-7)


def test_rotation_is_by_complex_multiplication_of_half_pairs():
    rng = np.random.default_rng(0)
    x, angles = rng.standard_normal((2, 5, 3, 8)), rng.uniform(0, 6, (2, 5, 4))
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)[:, :, None]
    got = rotate(jnp.asarray(x, jnp.float32), jnp.asarray(angles, jnp.float32))
    np.testing.assert_allclose(got, np.concatenate([turned.real, turned.imag], -1), atol=1e-6)


def test_angles_keep_float32_under_bfloat16_activations():
    positions = jnp.full((1, 3, 1), 4097)  # bfloat16 would make it 4096, a whole radian away
    angles = mrope_angles(positions, 16, THETA, SECTIONS)
    x = jnp.zeros((1, 1, 1, 16), jnp.bfloat16).at[..., 0].set(1)
    assert angles.dtype == jnp.float32
    assert rotate(x, angles).dtype == jnp.bfloat16
    np.testing.assert_allclose(rotate(x, angles)[0, 0, 0, 0], np.cos(4097), atol=4e-3)


def test_geometry_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"mrope_section \(2, 3, 4\)"):
        mrope_angles(jnp.zeros((1, 3, 4), int), 16, THETA, (2, 3, 4))
    with pytest.raises(ValueError, match=r"positions \(3, 1, 4\)"):
        mrope_angles(jnp.zeros((3, 1, 4), int), 16, THETA, SECTIONS)
    with pytest.raises(ValueError, match="multiple of 4"):
        patch_angles(jnp.zeros((1, 4, 2), int), 10)
