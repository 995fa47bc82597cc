"""Leaf modules that every tower is made of: parameters in `numerics.params`, arithmetic in `numerics.compute`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from virtue_jax.config import Numerics
from virtue_jax.models import initial
from virtue_jax.ops.splash import KERNEL_OUTPUT

LAST_SUM = "last_sum"  # what the last product of a layer gives: nothing but its own adapter needs it backwards


class Linear(nnx.Module):
    """y = x @ kernel + bias; kernel[in, out]. `keys` are for adapters that drop out (`models/lora.py`); unused here.

    last: whether it ends a layer, so that an adapter on it had better keep its sum than compute it again.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        numerics: Numerics,
        rngs: nnx.Rngs,
        use_bias: bool = True,
        gain: float = 1.0,
        last: bool = False,
    ):
        # `gain`: standard deviation of the outputs for unit inputs, when untrained.
        dtype = jnp.dtype(numerics.params)
        self.kernel = initial.kernel(d_in, (d_in, d_out), dtype, rngs, gain=gain)
        self.bias = initial.constant(0.0, (d_out,), dtype) if use_bias else None
        self.numerics, self.last = numerics, last

    def __call__(self, x, keys=None):
        dtype = jnp.dtype(self.numerics.compute)
        y = x.astype(dtype) @ self.kernel[...].astype(dtype)
        return y if self.bias is None else y + self.bias[...].astype(dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, in float32 whatever the compute dtype."""

    def __init__(self, dim: int, *, numerics: Numerics, eps: float = 1e-6):
        self.scale = initial.constant(1.0, (dim,), jnp.dtype(numerics.params))
        self.bias = initial.constant(0.0, (dim,), jnp.dtype(numerics.params))
        self.eps = eps

    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        # Variance of the centred values: mean(x^2) - mean(x)^2 loses every digit where |mean| >> std.
        normed = centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.eps)
        return (normed * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation over the last axis, in float32 whatever the compute dtype."""

    def __init__(self, dim: int, *, numerics: Numerics, eps: float = 1e-6):
        self.scale = initial.constant(1.0, (dim,), jnp.dtype(numerics.params))
        self.eps = eps

    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        normed = x32 * lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.eps)
        return self.scale[...].astype(x.dtype) * normed.astype(x.dtype)


def gelu(x):
    """The exact (erf) GELU of SAM-2, the connector and Qwen2-VL's merger; JAX's default is the tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


class Mlp(nnx.Module):
    """fc2(activation(fc1(x))), back to the width it came from."""

    def __init__(self, dim: int, d_hidden: int, activation: Callable, *, numerics: Numerics, rngs: nnx.Rngs):
        self.fc1 = Linear(dim, d_hidden, numerics=numerics, rngs=rngs)
        self.fc2 = Linear(d_hidden, dim, numerics=numerics, rngs=rngs)
        self.activation = activation

    def __call__(self, x):
        return self.fc2(self.activation(self.fc1(x)))


def stack(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` modules of one shape as a single module whose parameters lead with a layer axis (for `scan`)."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0, axis_size=count)
    def create(rngs: nnx.Rngs):
        return make(rngs)

    return create(rngs)


def scan(apply: Callable, module: nnx.Module, x, per_layer=None, *, remat: str = "none", collect: bool = False):
    """Runs x = apply(layer, x, per_layer[i]) over the layers of a stacked module.

    `apply` returns the new x. `per_layer` is a pytree with a leading layer axis, or None. `remat`: what is kept for the
    backward pass, as `Numerics` says. With `collect`, returns (x, every layer's input, stacked).
    """
    graphdef, state = nnx.split(module)

    def body(carry, layer):
        layer_state, extra = layer
        return apply(nnx.merge(graphdef, layer_state), carry, extra), carry if collect else None

    x, inputs = lax.scan(rematerialised(body, remat, in_loop=True), x, (state, per_layer))
    return (x, inputs) if collect else x


def branch_scope(times: int, of: int) -> str:
    """Name of a scope around a branch in a loop: how many of its turns take it, which nothing else in a compiled
    program tells (`aot/hlo/program.py` counts by it)."""
    return f"taken_{times}_of_{of}"


def rematerialised(body: Callable, remat: str, *, in_loop: bool = False) -> Callable:
    """`body`, keeping for its backward pass what `Numerics.remat` says. In a loop, the compiler cannot merge what is
    computed again with what was, and need not be kept from it."""
    policies = jax.checkpoint_policies
    outputs = policies.save_only_these_names(LAST_SUM, KERNEL_OUTPUT)
    kept = {
        "layer": None,
        "outputs": outputs,
        "dots": policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, outputs),
    }
    return jax.checkpoint(body, policy=kept[remat], prevent_cse=not in_loop) if remat in kept else body
