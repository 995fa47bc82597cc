"""A model's parameters as one flat dict {dotted path: array}: the form in which everything outside `models` sees them.

Freezing, decay, sharding, conversion and checkpoints are tables keyed by these paths.
"""

import re
from collections.abc import Mapping, Sequence

import jax
from flax import nnx

from virtue_jax.config import Numerics, VirtueConfig
from virtue_jax.models.virtue import Virtue


def parameters(model: nnx.Module) -> dict[str, jax.Array]:
    """{dotted path: array} of a model, or of an abstract one ({dotted path: ShapeDtypeStruct})."""
    return {dotted(path): leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(model))}


def dotted(path: Sequence) -> str:
    return ".".join(map(str, path))


def abstract_virtue(config: VirtueConfig, numerics: Numerics) -> Virtue:
    """A VIRTUE whose parameters are shapes: costs no memory at any size."""
    return nnx.eval_shape(lambda: Virtue(config, numerics=numerics, rngs=nnx.Rngs(0)))


def bind(model: Virtue, params: Mapping[str, jax.Array]) -> Virtue:
    """`model` (abstract or not) with `params` in place of its own; works under `jit` and `grad`.

    Raises:
        ValueError: paths missing or unknown, all of them named.
    """
    graphdef, state = nnx.split(model)
    flat = nnx.to_flat_state(state)
    paths = {dotted(path) for path, _ in flat}
    if paths != set(params):
        missing, unknown = sorted(paths - set(params)), sorted(set(params) - paths)
        raise ValueError(f"parameters do not fit the model: missing {missing}, unknown {unknown}")
    leaves = [(path, leaf.replace(params[dotted(path)])) for path, leaf in flat]
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


def select(paths: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """The paths that at least one pattern matches whole (`re.fullmatch`).

    Raises:
        ValueError: a pattern that matches nothing, with the paths that exist.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        matched = {path for path in paths if re.fullmatch(pattern, path)}
        if not matched:
            listing = "\n  ".join(sorted(paths))
            raise ValueError(f"pattern {pattern!r} matches no parameter; the parameters are:\n  {listing}")
        chosen |= matched
    return chosen
