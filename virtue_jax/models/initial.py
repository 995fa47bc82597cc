"""What an untrained parameter holds: a distribution, written on the parameter for whoever makes its values."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

CUT = 2.0  # standard deviations at which a "truncated_normal" is cut
_CUT_STD = 0.87962566103423978  # standard deviation of a normal distribution cut at 2


@dataclass(frozen=True)
class Initial:
    """The values of an untrained parameter, each independent of the others.

    distribution: "constant" (every value is `scale`), "normal" (mean 0, standard deviation `scale`) or
    "truncated_normal" (`scale` times a standard normal cut at +-2). like: the parameter, seen from the parent of this
    one's module, whose values these equal, e.g. "q_proj.kernel"; empty = values of its own.
    """

    distribution: Literal["constant", "normal", "truncated_normal"]
    scale: float
    like: str = ""

    def source(self, path: str) -> str:
        """The dotted path whose values the parameter at `path` has."""
        return f"{path.rsplit('.', 2)[0]}.{self.like}" if self.like else path


def constant(value: float, shape: tuple[int, ...], dtype) -> nnx.Param:
    return nnx.Param(jnp.full(shape, value, dtype), initial=Initial("constant", value))


def normal(scale: float, shape: tuple[int, ...], dtype, rngs: nnx.Rngs) -> nnx.Param:
    """Standard deviation `scale`."""
    values = jax.random.normal(rngs.params(), shape, dtype) * jnp.array(scale, dtype)
    return nnx.Param(values, initial=Initial("normal", scale))


def truncated_normal(scale: float, shape: tuple[int, ...], dtype, rngs: nnx.Rngs) -> nnx.Param:
    """`scale` times a standard normal cut at +-2."""
    values = jax.random.truncated_normal(rngs.params(), -CUT, CUT, shape, dtype) * jnp.array(scale, dtype)
    return nnx.Param(values, initial=Initial("truncated_normal", scale))


def kernel(fan_in: int, shape: tuple[int, ...], dtype, rngs: nnx.Rngs, *, gain: float = 1.0) -> nnx.Param:
    """Outputs of standard deviation `gain` for unit inputs, `fan_in` to an output: LeCun's initialisation."""
    return truncated_normal(gain * fan_in**-0.5 / _CUT_STD, shape, dtype, rngs)


def copy(param: nnx.Param, like: str) -> nnx.Param:
    """A parameter that starts as `param`, which is at `like` (see `Initial`), and is trained by itself."""
    initial = param.get_metadata("initial")
    return nnx.Param(param[...], initial=Initial(initial.distribution, initial.scale, like))
