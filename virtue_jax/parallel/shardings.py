"""Which axis of which parameter is split over which mesh axis: one table keyed by parameter path."""

import re
from collections.abc import Iterable, Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from virtue_jax.parallel.mesh import FSDP, TENSOR

_WHOLE = PartitionSpec()
_IN_OUT = PartitionSpec(None, FSDP, TENSOR)  # [layers, in, out]: every device has some of the outputs
_OUT_IN = PartitionSpec(None, TENSOR, FSDP)  # [layers, in, out]: every device sums over some of the inputs

# Exactly one row must match each path whole, so that their order means nothing.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"text\.layers\.(self_attn\.[qkv]_proj|mlp\.(gate|up)_proj)\.kernel", _IN_OUT),
    (r"text\.layers\.(self_attn\.o_proj|mlp\.down_proj)\.kernel", _OUT_IN),
    (r"text\.layers\.self_attn\.[qkv]_proj\.bias", PartitionSpec(None, TENSOR)),
    # Lookups in a split table cost a sum over all devices for every micro-batch; adapters and norms are small.
    (r"text\.embed_tokens\.embedding", _WHOLE),
    (r"text\.layers\..*\.(lora_a|lora_b|magnitude)", _WHOLE),
    (r"text\.(layers\.(input|post_attention)_layernorm|norm)\.scale", _WHOLE),
    # The image towers split their rows over every axis, so that their weights are gathered whole anyway.
    (r"vision\.blocks\.(attn\.(qkv|proj)|mlp\.fc[12])\.kernel", PartitionSpec(None, FSDP)),
    (r"vision\.merger\.fc[12]\.kernel", PartitionSpec(FSDP)),
    (r"vision\.(blocks|merger)\..*\.(bias|scale)", _WHOLE),
    (r"vision\.patch_embed\.kernel", _WHOLE),
    (r"sam2\..*", _WHOLE),
    (r"connector\..*", _WHOLE),
    (r"loss\..*", _WHOLE),
)


def partition(path: str) -> PartitionSpec:
    """The partition of a parameter.

    Raises:
        ValueError: no row of the table matches, or several do.
    """
    specs = [spec for pattern, spec in RULES if re.fullmatch(pattern, path)]
    if len(specs) != 1:
        raise ValueError(f"{path}: {len(specs)} rows of parallel/shardings.py match; expected exactly one")
    return specs[0]


def parameter_shardings(shapes: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh) -> dict[str, NamedSharding]:
    """{path: sharding} of parameters.

    Raises:
        ValueError: a path without a rule; dimensions that the mesh axis does not divide, all of them named.
    """
    shardings = {path: NamedSharding(mesh, partition(path)) for path in shapes}
    wrong = [line for path, sharding in shardings.items() for line in _misfits(path, shapes[path].shape, sharding)]
    if wrong:
        listing = "\n  ".join(wrong)
        raise ValueError(f"parameters do not divide over the mesh {dict(mesh.shape)}:\n  {listing}")
    return shardings


def _misfits(path: str, shape: tuple[int, ...], sharding: NamedSharding) -> Iterable[str]:
    for size, axis in zip(shape, sharding.spec, strict=False):
        if axis is not None and size % sharding.mesh.shape[axis]:
            yield f"{path} {shape}: {size} is not a multiple of {axis}={sharding.mesh.shape[axis]}"
