"""The largest arrays of a step on one chip, by parameter or by the line of source that makes them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jax

from virtue_jax.train.step.setup import TrainSetup


@dataclass(frozen=True)
class LargeArray:
    """bytes: on one chip, less padding. source: a parameter, or "file.py:line" of the operation."""

    bytes: int
    what: str
    source: str


def largest_arrays(run: TrainSetup, traced: Mapping[str, jax.stages.Traced], count: int = 12) -> list[LargeArray]:
    """Parameters, inputs and intermediate arrays; those of a stage before its compiler fuses or reuses any.

    Intermediate arrays are those of one device of the data axis, before the compiler splits them over fsdp and tensor.
    """
    named = {"parameter": {**run.frozen, **run.state.trainable}}
    largest = {
        (what, path): LargeArray(_shard_bytes(x), f"{what} {x.dtype}{list(x.shape)}", path)
        for what, arrays in named.items()
        for path, x in arrays.items()
    }
    for stage, program in traced.items():
        for array in _made(program.jaxpr.jaxpr, stage):
            known = largest.get((array.what, array.source))
            if known is None or known.bytes < array.bytes:
                largest[array.what, array.source] = array
    return sorted(largest.values(), key=lambda array: -array.bytes)[:count]


def _shard_bytes(x: jax.ShapeDtypeStruct) -> int:
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def _made(jaxpr, stage: str, inside: bool = False) -> Iterator[LargeArray]:
    """Arrays made inside of the mapped part, where shapes are one device's."""
    for equation in jaxpr.eqns:
        mapped = inside or equation.primitive.name == "shard_map"
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
                body = getattr(inner, "jaxpr", inner)
                if hasattr(body, "eqns"):
                    yield from _made(body, stage, mapped)
        if inside and equation.primitive.name not in ("pjit", "jit", "closed_call", "remat", "checkpoint"):
            for variable in equation.outvars:
                shape, dtype = getattr(variable.aval, "shape", None), getattr(variable.aval, "dtype", None)
                if shape and hasattr(dtype, "itemsize"):
                    what = f"{stage}: {equation.primitive.name} {dtype}{list(shape)}"
                    yield LargeArray(math.prod(shape) * dtype.itemsize, what, _line(equation))


def _line(equation) -> str:
    """The innermost line of this project that made an operation."""
    traceback = equation.source_info.traceback
    for frame in traceback.frames if traceback else ():
        _, package, place = frame.file_name.rpartition("virtue_jax/")
        if package:
            return f"virtue_jax/{place}:{frame.line_num}"
    return str(equation.source_info.name_stack)
