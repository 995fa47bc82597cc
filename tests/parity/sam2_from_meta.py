"""A `Sam2` with the weights of a state dict in Meta's naming, through the converter's own table."""

import jax.numpy as jnp
from flax import nnx

from converters.rules import expand
from converters.sam2 import rules
from virtue_jax.config import Numerics, Sam2Config
from virtue_jax.models.parameters import bind
from virtue_jax.models.sam2 import Sam2


def sam2_from_meta(config: Sam2Config, source) -> Sam2:
    """source: anything with `read(name)`."""
    abstract = nnx.eval_shape(lambda: Sam2(config, numerics=Numerics(), rngs=nnx.Rngs(0)))
    entries = expand(rules(config))
    params = {e.target.removeprefix("sam2."): e.pack([source.read(name) for name in e.sources]) for e in entries}
    return bind(abstract, {path: jnp.asarray(array) for path, array in params.items()})
