"""PEFT adapters whose modules differ in rank or scale, as an adapter of one rank and one scale.

A module of rank r and alpha a adds s B A to its kernel, with s = a / r, or a / sqrt(r) where `use_rslora` is set
("rank-stabilised", arXiv 2312.03732); `rank_pattern` and `alpha_pattern` give single modules an r or an a of their own.
Here all modules have the largest rank R and one scale S: A and B of a smaller rank are filled up with zeros, and B is
multiplied by s / S. LoRA and DoRA both see A and B only as s B A, so neither changes. S is the scale for which s / S is
a power of two, which multiplies without rounding, for most modules; where it is not, B becomes float32 and is rounded
once, to the nearest.

Trained on, such an adapter computes what PEFT's would at the same step; an optimizer that is not linear in the gradient
(AdamW) then moves a B that was multiplied by its own factor less or more than PEFT would, relative to its size.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from converters.errors import refuse
from converters.mapped_file import TensorInfo
from converters.sources import Source
from virtue_jax.config import AdapterConfig

_FLOAT32 = np.dtype(np.float32)


def uniform(
    source: Source, values: dict, file: Path, config: AdapterConfig
) -> tuple["Source | UniformAdapter", AdapterConfig]:
    """The adapter and its numbers with one rank and one scale; both as they are where nothing differs from the rule.

    Args:
        values: adapter_config.json, read from `file`. config: what it says of a module that no pattern matches.

    Raises:
        CheckpointError: patterns that are not patterns with positive numbers, or tensors of other ranks than they say.
    """
    if not any(values.get(key) for key in ("use_rslora", "rank_pattern", "alpha_pattern")):
        return source, config
    ranks, alphas = values.get("rank_pattern") or {}, values.get("alpha_pattern") or {}
    problems = _pattern_problems("rank_pattern", ranks, int, file)
    refuse(problems + _pattern_problems("alpha_pattern", alphas, float, file))
    modules, problems = {}, []
    for name, info in source.infos.items():
        if (match := re.fullmatch(r"(.+)\.lora_([AB])\.weight", name)) is None:
            continue
        path = source.stored_name(name).removeprefix("base_model.model.").rsplit(".lora_", 1)[0]
        rank, alpha = pattern_value(ranks, path, config.rank), pattern_value(alphas, path, config.alpha)
        modules[match[1]] = (rank, alpha / (math.sqrt(rank) if values.get("use_rslora") else rank))
        axis = 0 if match[2] == "A" else 1
        if len(info.shape) != 2 or info.shape[axis] != rank:
            problems.append(f"{info.file}: tensor {name} has shape {info.shape}, but {file} gives it rank {rank}")
    refuse(problems)
    scale = _common_scale([scale for _, scale in modules.values()])
    rank = max(rank for rank, _ in modules.values())
    factors = {module: own / scale for module, (_, own) in modules.items()}
    return UniformAdapter(source, rank, scale, factors), replace(config, rank=rank, alpha=scale * rank)


def pattern_value(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The value of a module by PEFT's rule: of the first pattern, a regular expression, that matches its whole path or
    the end of it from a dot on."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _pattern_problems(key: str, patterns, kind: type, file: Path) -> list[str]:
    if not isinstance(patterns, dict):
        return [f"{file}: {key} is {patterns!r}, expected patterns with numbers"]
    problems = []
    for pattern, value in patterns.items():
        if isinstance(value, bool) or not isinstance(value, (int, kind)) or value <= 0:
            problems.append(f"{file}: {key} gives {pattern!r} the value {value!r}, expected a positive {kind.__name__}")
        try:
            re.compile(pattern)
        except re.error as error:
            problems.append(f"{file}: {key} has {pattern!r}, which is not a regular expression ({error})")
    return problems


def _common_scale(scales: list[float]) -> float:
    """The scale that most modules' are a power of two away from; of several, that of most modules."""
    counts = Counter(scales)
    exact = {scale: sum(n for other, n in counts.items() if _power_of_two(other / scale)) for scale in counts}
    return max(counts, key=lambda scale: (exact[scale], counts[scale]))


def _power_of_two(factor: float) -> bool:
    return math.frexp(factor)[0] == 0.5


class UniformAdapter:
    """A `Source` of an adapter's tensors at one rank and one scale.

    factors: {module: what its B is multiplied by}. notes: what was done to the tensors.
    """

    def __init__(self, source: Source, rank: int, scale: float, factors: Mapping[str, float]):
        self.where, self.unused = source.where, source.unused
        self._source, self._rank, self._factors = source, rank, factors
        scaled = [factor for factor in factors.values() if factor != 1]
        # Float16 has no room below for a smaller power of two.
        dtypes = {info.dtype.name for name, info in source.infos.items() if name.endswith(".lora_B.weight")}
        exact = all(map(_power_of_two, scaled)) and "float16" not in dtypes
        self._widened = bool(scaled) and not exact and bool(dtypes & {"float16", "bfloat16"})
        self.infos = {name: self._info(name, info) for name, info in source.infos.items()}
        rounding = "exactly" if all(map(_power_of_two, scaled)) else "rounded to the nearest"
        change = f", lora_B of {len(scaled)} of {len(factors)} modules multiplied, {rounding}" if scaled else ""
        self.notes = [f"adapter: taken as one of rank {rank} and scale {scale:g} (alpha / rank){change}"]

    def _info(self, name: str, info: TensorInfo) -> TensorInfo:
        if name.endswith(".lora_A.weight"):
            return replace(info, shape=(self._rank, *info.shape[1:]))
        if name.endswith(".lora_B.weight"):
            dtype = _FLOAT32 if self._widened else info.dtype
            return replace(info, shape=(*info.shape[:1], self._rank), dtype=dtype)
        return info

    def read(self, name: str) -> np.ndarray:
        """A copy of one tensor at the common rank and scale."""
        array, info = self._source.read(name), self.infos[name]
        missing = [(0, wanted - has) for wanted, has in zip(info.shape, array.shape, strict=True)]
        array = np.pad(array, missing) if any(after for _, after in missing) else array
        factor = self._factors.get(name.removesuffix(".lora_B.weight"), 1.0)
        if factor != 1:
            array = array.astype(np.float64) * factor
        return array.astype(info.dtype, copy=False)
