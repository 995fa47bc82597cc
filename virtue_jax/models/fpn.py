"""The feature pyramid neck between SAM-2's trunk and its decoder: every level to one width, coarse added to fine."""

import jax.numpy as jnp
from flax import nnx

from virtue_jax.config import Numerics
from virtue_jax.models.layers import Linear

# The trunk's output is not normalised. A map of unit size or more would drown what a prompt adds to it in an untrained
# decoder, and training from scratch would not find the prompt for a long time.
GAIN = 0.2


class FpnNeck(nnx.Module):
    """1x1 convolutions and a nearest-neighbour top-down sum. `convs` are in SAM-2's order: 0 = coarsest level."""

    def __init__(self, dims: tuple[int, ...], d_model: int, top_down: tuple[int, ...], *, numerics: Numerics, rngs):
        beyond = [level for level in top_down if not 0 <= level < len(dims)]
        if beyond:
            raise ValueError(
                f"FPN: fpn_top_down_levels {beyond} do not exist, the trunk has levels 0 .. {len(dims) - 1}"
            )
        self.convs = nnx.List(Linear(dim, d_model, numerics=numerics, rngs=rngs, gain=GAIN) for dim in reversed(dims))
        self.top_down = top_down

    def __call__(self, maps):
        """maps: [B, H/2^i, W/2^i, C_i], finest first -> the same levels [B, H/2^i, W/2^i, D] less the coarsest.

        The coarsest level is dropped (`scalp: 1` of the published yaml) after it went into the one below.
        """
        levels, above = [], None
        for i in reversed(range(len(maps))):
            lateral = self.convs[len(maps) - 1 - i](maps[i])
            above = lateral + _double(above) if above is not None and i in self.top_down else lateral
            levels.append(above)
        return levels[:0:-1]


def _double(x_BHWC):
    return jnp.repeat(jnp.repeat(x_BHWC, 2, axis=1), 2, axis=2)
