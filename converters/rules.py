"""The rule engine: one table maps a foreign checkpoint to parameter paths and back.

`Rule("visual.blocks.{i}.attn.qkv", "vision.blocks.attn.qkv", linear, layers=range(32))` says: the linear layer of every
source block i is layer i of one stacked parameter. A family (`linear`, `norm`, ...) expands to the tensors of the
module, each with an invertible transform. `{i}` runs over `layers`; a target without `{i}` is stacked over them.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from converters.mapped_file import TensorInfo


@dataclass(frozen=True)
class Transform:
    """An invertible change of layout; neither direction changes a value. `forward(inverse(x))` is x."""

    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]

    def source_shape(self, target_shape: Sequence[int]) -> tuple[int, ...]:
        """The source shape that gives `target_shape`, by running `inverse` on an array that takes no memory."""
        return self.inverse(np.broadcast_to(np.zeros((), np.bool_), tuple(target_shape))).shape


same = Transform(lambda x: x, lambda x: x)
transposed = Transform(lambda x: x.T, lambda x: x.T)
conv_kernel = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW <-> HWIO
pointwise_kernel = Transform(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])  # [o, i, 1, 1] <-> [i, o]
without_leading = Transform(lambda x: x[0], lambda x: x[None])  # [1, ...] <-> [...]
without_two_leading = Transform(lambda x: x[0, 0], lambda x: x[None, None])
channels_last = Transform(lambda x: x[0].transpose(1, 2, 0), lambda x: x.transpose(2, 0, 1)[None])  # [1, D, h, w]


def video_patches(channels: int, patch: int) -> Transform:
    """Conv3d kernel [D, C, T, p, p] <-> [T, C * p * p, D]."""
    return Transform(
        lambda x: x.transpose(2, 1, 3, 4, 0).reshape(x.shape[2], -1, x.shape[0]),
        lambda x: x.reshape(x.shape[0], channels, patch, patch, -1).transpose(4, 1, 0, 2, 3),
    )


Family = tuple[tuple[str, str, Transform], ...]  # (source suffix, target suffix, transform) of each tensor

linear: Family = (("weight", "kernel", transposed), ("bias", "bias", same))
linear_without_bias: Family = (("weight", "kernel", transposed),)
conv: Family = (("weight", "kernel", conv_kernel), ("bias", "bias", same))
pointwise: Family = (("weight", "kernel", pointwise_kernel), ("bias", "bias", same))
norm: Family = (("weight", "scale", same), ("bias", "bias", same))
rms_norm: Family = (("weight", "scale", same),)
embedding: Family = (("weight", "embedding", same),)


def tensor(transform: Transform = same) -> Family:
    """A bare tensor: source and target patterns are whole names."""
    return (("", "", transform),)


@dataclass(frozen=True)
class Rule:
    """source and target: dotted patterns, both with `{i}` or only the source; layers: what `{i}` stands for."""

    source: str
    target: str
    family: Family
    layers: range | None = None

    def entries(self) -> Iterable["Entry"]:
        for source_suffix, target_suffix, transform in self.family:
            source, target = _join(self.source, source_suffix), _join(self.target, target_suffix)
            if self.layers is None:
                yield Entry(target, (source,), transform, stacked=False)
            elif "{i}" in target:
                for i in self.layers:
                    yield Entry(
                        target.replace("{i}", str(i)), (source.replace("{i}", str(i)),), transform, stacked=False
                    )
            elif len(self.layers):
                yield Entry(target, tuple(source.replace("{i}", str(i)) for i in self.layers), transform, stacked=True)


def _join(pattern: str, suffix: str) -> str:
    return f"{pattern}.{suffix}" if suffix else pattern


@dataclass(frozen=True)
class Entry:
    """One parameter and the source tensors it is made of: one, or one per layer where it is stacked."""

    target: str
    sources: tuple[str, ...]
    transform: Transform
    stacked: bool

    def source_shape(self, target_shape: Sequence[int]) -> tuple[int, ...]:
        return self.transform.source_shape(target_shape[1:] if self.stacked else target_shape)

    def pack(self, tensors: Sequence[np.ndarray]) -> np.ndarray:
        """Source tensors -> the parameter (or, if stacked, as many of its layers as were given)."""
        layers = [self.transform.forward(x) for x in tensors]
        return np.stack(layers) if self.stacked else np.ascontiguousarray(layers[0])

    def unpack(self, parameter: np.ndarray) -> Iterable[tuple[str, np.ndarray]]:
        """The parameter -> (source name, tensor) pairs, one at a time."""
        layers = parameter if self.stacked else [parameter]
        for name, layer in zip(self.sources, layers, strict=True):
            yield name, np.ascontiguousarray(self.transform.inverse(np.asarray(layer)))


@dataclass(frozen=True)
class LeftOut:
    """Source tensors that no parameter is made of, with the reason. `carried` ones are kept beside the parameters."""

    pattern: str
    reason: str
    carried: bool = True

    def matches(self, name: str) -> bool:
        return re.fullmatch(self.pattern, name) is not None


def expand(rules: Iterable[Rule]) -> list[Entry]:
    return [entry for rule in rules for entry in rule.entries()]


FLOATS = ("float64", "float32", "float16", "bfloat16")


def cover(
    entries: Sequence[Entry],
    left_out: Sequence[LeftOut],
    infos: Mapping[str, TensorInfo],
    targets: Mapping[str, Sequence[int]],
    where: str,
) -> tuple[list[str], list[str]]:
    """Checks that the table covers source and targets exactly, in names and shapes.

    Args:
        targets: {path: shape} of the parameters that `entries` must fill.

    Returns:
        (problems, names of the tensors left out that are carried).
    """
    problems = _repeated("target", [e.target for e in entries], where)
    problems += _repeated("source", [name for e in entries for name in e.sources], where)
    for path in sorted(set(targets) - {e.target for e in entries}):
        problems.append(f"{where}: no rule fills parameter {path} {tuple(targets[path])}")
    for entry in entries:
        if entry.target in targets:
            problems += _misfits(entry, infos, targets[entry.target], where)
        else:
            problems.append(f"{where}: the rules fill {entry.target}, which the model does not have")
    used = {name for entry in entries for name in entry.sources}
    extra = [name for name in infos if name not in used]
    problems += [
        f"{infos[name].file}: extra tensor {name} {infos[name].shape}: nothing in the model takes it"
        for name in extra
        if not any(rule.matches(name) for rule in left_out)
    ]
    carried = [name for name in extra if any(rule.matches(name) and rule.carried for rule in left_out)]
    return problems, carried


def _misfits(entry: Entry, infos: Mapping[str, TensorInfo], shape: Sequence[int], where: str) -> list[str]:
    problems = []
    if entry.stacked and len(entry.sources) != shape[0]:
        return [f"{where}: {entry.target} stacks {len(entry.sources)} layers, the model has {shape[0]}"]
    expected = entry.source_shape(shape)
    for name in entry.sources:
        if name not in infos:
            problems.append(f"{where}: missing tensor {name} {expected} (for {entry.target})")
            continue
        info = infos[name]
        if info.shape != expected:
            problems.append(
                f"{info.file}: tensor {name} has shape {info.shape}, expected {expected} (for {entry.target})"
            )
        if info.dtype.name not in FLOATS:
            problems.append(f"{info.file}: tensor {name} has dtype {info.dtype}, expected one of {', '.join(FLOATS)}")
    return problems


def _repeated(kind: str, names: Sequence[str], where: str) -> list[str]:
    return [f"{where}: the rules name {kind} {name} {n} times" for name, n in sorted(Counter(names).items()) if n > 1]
