"""From an opened foreign VIRTUE to parameters: exact cover first, then tensors one at a time."""

from pathlib import Path

import numpy as np

from converters.errors import CheckpointError
from converters.foreign import Component, ForeignVirtue, tied_head_problems
from converters.rules import FLOATS, Entry, cover
from converters.sam2 import incomplete
from virtue_jax.array_store import LazyArray
from virtue_jax.model_directory import abstract_parameters, parameter_shapes

DTYPES = ("keep", "float32", "bfloat16", "float16")

_BLOCK = 1 << 24


def check(virtue: ForeignVirtue, dtype: str) -> dict[str, list[str]]:
    """The names of the tensors to carry, by component.

    Raises:
        CheckpointError: whatever is missing, extra, misshapen, of a wrong dtype, or (then) not finite, all named.
    """
    problems, carried = [], {}
    targets = parameter_shapes(virtue.config)
    for component in virtue.components:
        mine = {path: shape for path, shape in targets.items() if component_of(path) == component.name}
        found, names = cover(
            component.entries, component.left_out, component.source.infos, mine, str(component.source.where)
        )
        problems += found
        carried[component.name] = names
        if component.name == "sam2":
            problems += incomplete(component.source.infos, str(component.source.where))
        if component.name == "vlm":
            problems += tied_head_problems(component, virtue.config.text)
        if dtype == "keep":
            problems += _mixed_dtypes(component)
    if problems:
        raise CheckpointError(problems + unusable(virtue, dtype))
    return carried


def component_of(path: str) -> str:
    """Which component fills a parameter: "sam2", "connector", "vlm" or "adapter"."""
    if path.rsplit(".", 1)[-1] in ("lora_a", "lora_b", "magnitude"):
        return "adapter"
    room = path.split(".", 1)[0]
    return room if room in ("sam2", "connector") else "vlm"


def lazy_parameters(virtue: ForeignVirtue, dtype: str) -> dict[str, LazyArray]:
    """{dotted path: array that is read when it is written}, in the dtype that `stored_dtypes` says.

    Reading raises `CheckpointError` for a tensor that is not finite.
    """
    shapes, dtypes = parameter_shapes(virtue.config), stored_dtypes(virtue, dtype)
    return {
        entry.target: _lazy(component, entry, shapes[entry.target], dtypes[entry.target])
        for component in virtue.components
        for entry in component.entries
    }


def stored_dtypes(virtue: ForeignVirtue, dtype: str) -> dict[str, np.dtype]:
    """{dotted path: dtype} for a `--dtype`: each tensor's own ("keep"), else what the model has its parameters in.

    The model keeps a few parameters in float32 whatever the rest is in; so does its checkpoint.
    """
    if dtype != "keep":
        return {path: np.dtype(x.dtype) for path, x in abstract_parameters(virtue.config, dtype).items()}
    return {
        entry.target: component.source.infos[entry.sources[0]].dtype
        for component in virtue.components
        for entry in component.entries
        if entry.sources[0] in component.source.infos
    }


def _lazy(component: Component, entry: Entry, shape: tuple[int, ...], dtype: np.dtype) -> LazyArray:
    source = component.source

    def read(begin: int, end: int) -> np.ndarray:
        names = entry.sources[begin:end] if entry.stacked else entry.sources
        return entry.pack([_convert(source.infos[name].file, name, source.read(name), dtype) for name in names])

    return LazyArray(shape, dtype, read, step=1 if entry.stacked else max(shape[0], 1))


def read_state(virtue: ForeignVirtue, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Every parameter in memory at once: for tests and small models.

    Raises:
        CheckpointError: as `check`, and tensors that are not finite.
    """
    check(virtue, dtype)
    return {path: array.read(0, array.shape[0]) for path, array in lazy_parameters(virtue, dtype).items()}


def unusable(virtue: ForeignVirtue, dtype: str) -> list[str]:
    """One line for every tensor that holds NaN or infinity, or would in `dtype`; reads everything, one at a time."""
    problems, dtypes = [], stored_dtypes(virtue, dtype)
    for component in virtue.components:
        used = {name: dtypes[e.target] for e in component.entries for name in e.sources if e.target in dtypes}
        for name, info in component.source.infos.items():
            if info.dtype.name in FLOATS:
                try:
                    _convert(info.file, name, component.source.read(name), used.get(name, info.dtype))
                except CheckpointError as error:
                    problems += error.problems
    return problems


def finite(array: np.ndarray) -> bool:
    """Whether a float array holds neither NaN nor infinity."""
    flat = array.reshape(-1)
    return all(np.isfinite(flat[start : start + _BLOCK]).all() for start in range(0, flat.size, _BLOCK))


def _convert(file: Path, name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if not finite(array):
        raise CheckpointError([f"{file}: tensor {name} holds NaN or infinity"])
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if not finite(cast):
        raise CheckpointError([f"{file}: tensor {name} has values too large for {dtype}; choose another --dtype"])
    return cast


def _mixed_dtypes(component: Component) -> list[str]:
    infos, problems = component.source.infos, []
    for entry in component.entries:
        kinds = sorted({infos[name].dtype.name for name in entry.sources if name in infos} & set(FLOATS))
        if len(kinds) > 1:
            where, remedy = component.source.where, "choose a --dtype other than keep"
            problems.append(
                f"{where}: the layers of {entry.target} have different dtypes ({', '.join(kinds)}); {remedy}"
            )
    return problems


def summary(virtue: ForeignVirtue) -> list[str]:
    """One line per component and reason of what was left out."""
    lines = []
    for component in virtue.components:
        for reason, carried in dict.fromkeys((rule.reason, rule.carried) for rule in component.left_out):
            rules = [rule for rule in component.left_out if rule.reason == reason]
            count = sum(any(rule.matches(name) for rule in rules) for name in component.source.infos)
            if count:
                fate = "carried along for export" if carried else "dropped"
                lines.append(f"{component.name}: {count} tensors {fate}: {reason}")
    return lines
