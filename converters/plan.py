"""From an opened foreign VIRTUE to parameters: exact cover first, then tensors one at a time."""

import numpy as np

from converters.errors import CheckpointError
from converters.foreign import Component, ForeignVirtue, tied_head_problems
from converters.rules import FLOATS, Entry, cover
from converters.sam2 import incomplete
from virtue_jax.checkpoint import parameter_shapes
from virtue_jax.lazy_write import LazyArray

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
        raise CheckpointError(problems + not_finite(virtue))
    return carried


def component_of(path: str) -> str:
    """Which component fills a parameter: "sam2", "connector", "vlm" or "adapter"."""
    if path.rsplit(".", 1)[-1] in ("lora_a", "lora_b", "magnitude"):
        return "adapter"
    room = path.split(".", 1)[0]
    return room if room in ("sam2", "connector") else "vlm"


def lazy_parameters(virtue: ForeignVirtue, dtype: str) -> dict[str, LazyArray]:
    """{dotted path: array that is read when it is written}, in `dtype` or each tensor's own ("keep").

    Reading raises `CheckpointError` for a tensor that is not finite.
    """
    shapes = parameter_shapes(virtue.config)
    return {
        entry.target: lazy(component, entry, shapes[entry.target], dtype)
        for component in virtue.components
        for entry in component.entries
    }


def lazy(component: Component, entry: Entry, shape: tuple[int, ...], dtype: str) -> LazyArray:
    source = component.source
    out = source.infos[entry.sources[0]].dtype if dtype == "keep" else _dtype(dtype)

    def read(begin: int, end: int) -> np.ndarray:
        names = entry.sources[begin:end] if entry.stacked else entry.sources
        return entry.pack([_convert(source.infos[name].file, name, source.read(name), out) for name in names])

    return LazyArray(shape, out, read, step=1 if entry.stacked else max(shape[0], 1))


def read_state(virtue: ForeignVirtue, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Every parameter in memory at once: for tests and small models.

    Raises:
        CheckpointError: as `check`, and tensors that are not finite.
    """
    check(virtue, dtype)
    return {path: array.read(0, array.shape[0]) for path, array in lazy_parameters(virtue, dtype).items()}


def not_finite(virtue: ForeignVirtue) -> list[str]:
    """One line for every tensor that holds NaN or infinity; reads everything, one tensor at a time."""
    problems = []
    for component in virtue.components:
        infos = component.source.infos
        for name in infos:
            if infos[name].dtype.name in FLOATS and not finite(component.source.read(name)):
                problems.append(f"{infos[name].file}: tensor {name} holds NaN or infinity")
    return problems


def finite(array: np.ndarray) -> bool:
    flat = array.reshape(-1)
    return all(np.isfinite(flat[start : start + _BLOCK]).all() for start in range(0, flat.size, _BLOCK))


def _convert(file, name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
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
        kinds = sorted({infos[name].dtype.name for name in entry.sources if name in infos})
        if len(kinds) > 1:
            where, remedy = component.source.where, "choose a --dtype other than keep"
            problems.append(
                f"{where}: the layers of {entry.target} have different dtypes ({', '.join(kinds)}); {remedy}"
            )
    return problems


def _dtype(name: str) -> np.dtype:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


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
