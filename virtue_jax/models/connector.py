"""The segmentation-language connector: SAM-2's fused map -> segmentation tokens in the language model's width."""

import jax.numpy as jnp
from flax import nnx

from virtue_jax.config import Numerics, VirtueConfig
from virtue_jax.models import initial
from virtue_jax.models.layers import Linear, gelu


class StridedConv(nnx.Module):
    """A convolution whose stride equals its kernel, as one matrix product over patches; kernel[k, k, in, out]."""

    def __init__(self, d_in: int, d_out: int, size: int, *, numerics: Numerics, rngs: nnx.Rngs):
        dtype = jnp.dtype(numerics.params)
        self.kernel = initial.kernel(size * size * d_in, (size, size, d_in, d_out), dtype, rngs)
        self.bias = initial.constant(0.0, (d_out,), dtype)
        self.size = size
        self.numerics = numerics

    def __call__(self, x):
        """x[B, H, W, in] -> [B, H/k, W/k, out]; H and W are multiples of k."""
        b, h, w, c = x.shape
        k = self.size
        dtype = jnp.dtype(self.numerics.compute)
        patches = x.reshape(b, h // k, k, w // k, k, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // k, w // k, -1)
        kernel = self.kernel[...].reshape(k * k * c, -1)
        return patches.astype(dtype) @ kernel.astype(dtype) + self.bias[...].astype(dtype)


class Connector(nnx.Module):
    """Conv2d(kernel 4, stride 4), then Linear - GELU - Linear (paper section 3; `SAM2VLM` of the released code)."""

    def __init__(self, config: VirtueConfig, *, numerics: Numerics, rngs: nnx.Rngs):
        dim = config.sam2.d_model
        self.reduce = StridedConv(dim, dim, config.CONNECTOR_STRIDE, numerics=numerics, rngs=rngs)
        self.fc1 = Linear(dim, dim, numerics=numerics, rngs=rngs)
        self.fc2 = Linear(dim, config.text.hidden_size, numerics=numerics, rngs=rngs)

    def __call__(self, fused):
        """fused[B, h, w, D] -> segmentation tokens [B, h * w / 16, hidden], row-major over the reduced grid."""
        reduced = self.reduce(fused)
        tokens = reduced.reshape(reduced.shape[0], -1, reduced.shape[-1])
        return self.fc2(gelu(self.fc1(tokens)))
