"""Bicubic resizing against PyTorch's."""

import numpy as np
import pytest
import torch

from virtue_jax.ops.resize import bicubic_matrix, resize_bicubic

pytestmark = pytest.mark.parity

SIZES = [((7, 7), (256, 256)), ((14, 14), (16, 16)), ((14, 14), (64, 48)), ((5, 9), (48, 48)), ((20, 3), (7, 7))]


@pytest.mark.parametrize(("size_in", "size_out"), SIZES)
def test_bicubic_equals_pytorch(size_in, size_out):
    x = np.random.default_rng(0).standard_normal((*size_in, 4), np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(2, 0, 1)[None], size_out, mode="bicubic", align_corners=False
    )
    ours = resize_bicubic(x, *size_out)
    np.testing.assert_allclose(ours, theirs[0].permute(1, 2, 0).numpy(), rtol=0, atol=5e-6)


def test_same_size_is_the_identity_and_rows_sum_to_one():
    np.testing.assert_array_equal(bicubic_matrix(9, 9), np.eye(9, dtype=np.float32))
    np.testing.assert_allclose(bicubic_matrix(7, 100).sum(1), 1, rtol=1e-6)
