"""The fields of a study's point, checked one by one."""

from typing import Any

from virtue_jax.aot.study.point import EFFORTS, FULL, MESH_AXES, Point, chips_of
from virtue_jax.chips import chip_of
from virtue_jax.config import REMAT

MODELS = {size: f"configs/virtue_{size}_scar.py:large" for size in ("2b", "7b")}
FIELDS = ("model", "config", "topology", "slices", "batch", "batch_per_chip", "mesh", "remat", "rows", "set", "effort")
_INSTEAD = {"model": "config", "config": "model", "batch": "batch_per_chip", "batch_per_chip": "batch"}


class Wrong(Exception):
    """A field that is not as it should be: its place, what was expected, what it is."""

    def __init__(self, place: str, expected: str, got: Any):
        super().__init__(f"{place}: expected {expected}, got {got!r}")


def merge(fields: dict, more: dict, where: str) -> dict:
    """`more` over `fields`; `set` and `rows` are merged, and a field displaces the one that says the same otherwise."""
    merged = dict(fields)
    for key, value in more.items():
        if key not in FIELDS:
            raise Wrong(f"{where}.{key}", f"one of {', '.join(FIELDS)}, name", key)
        if _INSTEAD.get(key) in more:
            raise Wrong(where, f"{key} or {_INSTEAD[key]}", more)
        merged.pop(_INSTEAD.get(key, ""), None)
        both = key in ("set", "rows") and isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merged[key] | value if both else value
    return merged


def point_of(fields: dict, where: str, name: str) -> Point:
    """Raises `Wrong`."""
    for key in fields:
        if key not in FIELDS:
            raise Wrong(f"{where}.{key}", f"one of {', '.join(FIELDS)}, name", key)
    topology = fields.get("topology")
    try:
        chip_of(str(topology))
    except ValueError as error:
        raise Wrong(f"{where}.topology", f"a slice of TPUs ({error})", topology) from error
    slices = _count(fields.get("slices", 1), f"{where}.slices")
    effort = fields.get("effort", FULL)
    if effort not in EFFORTS:
        raise Wrong(f"{where}.effort", " or ".join(EFFORTS), effort)
    return Point(
        name,
        _config(fields, where),
        topology,
        _batch(fields, where, slices * chips_of(topology)),
        slices,
        _mesh(fields.get("mesh"), f"{where}.mesh"),
        _overrides(fields, where),
        effort,
    )


def _config(fields: dict, where: str) -> str:
    if "config" in fields:
        if not isinstance(fields["config"], str) or ".py" not in fields["config"]:
            raise Wrong(f"{where}.config", "a run file, as configs/virtue_2b_scar.py:large", fields["config"])
        return fields["config"]
    model = fields.get("model")
    if model not in MODELS:
        raise Wrong(f"{where}.model", f"{' or '.join(MODELS)}, or a run file as `config`", model)
    return MODELS[model]


def _batch(fields: dict, where: str, chips: int) -> int:
    if "batch_per_chip" in fields:
        return chips * _count(fields["batch_per_chip"], f"{where}.batch_per_chip")
    return _count(fields.get("batch"), f"{where}.batch", "a whole number of at least 1 (or `batch_per_chip`)")


def _mesh(given: Any, where: str) -> tuple[tuple[str, int], ...]:
    if given is None:
        return ()
    if not isinstance(given, dict) or not given or set(given) - set(MESH_AXES):
        raise Wrong(where, f"sizes of {', '.join(MESH_AXES)}, as {{data: -1, fsdp: 4}}", given)
    for axis, size in given.items():
        if not (axis == "data" and size == -1 and not isinstance(size, bool)):
            _count(size, f"{where}.{axis}", "a whole number of at least 1" + (", or -1" if axis == "data" else ""))
    whole = {"data": -1, "fsdp": 1, "tensor": 1} | given
    return tuple((axis, whole[axis]) for axis in MESH_AXES)


def _overrides(fields: dict, where: str) -> tuple[tuple[str, Any], ...]:
    found: dict[str, Any] = {}
    if "remat" in fields:
        if fields["remat"] not in REMAT:
            raise Wrong(f"{where}.remat", f"one of {', '.join(REMAT)}", fields["remat"])
        found["numerics.remat"] = fields["remat"]
    for key, prefix in (("rows", "data.rows."), ("set", "")):
        given = fields.get(key, {})
        if not isinstance(given, dict):
            raise Wrong(f"{where}.{key}", "a mapping", given)
        for path, value in _flat(given, f"{where}.{key}"):
            if path in found:
                raise Wrong(f"{where}.{key}", f"{path} in one place", value)
            found[prefix + path] = value
    return tuple(sorted(found.items()))


def _flat(values: dict, where: str) -> list[tuple[str, Any]]:
    """[(dotted path, value)] of nested mappings."""
    flat = []
    for key, value in values.items():
        if not isinstance(key, str) or not key or key.startswith("config."):
            raise Wrong(where, "paths within the configuration, as numerics.remat", key)
        if isinstance(value, dict):
            flat += [(f"{key}.{path}", each) for path, each in _flat(value, f"{where}.{key}")]
        elif isinstance(value, str | int | float | bool) or (
            isinstance(value, list) and all(isinstance(each, str | int | float) for each in value)
        ):
            flat.append((key, value))
        else:
            raise Wrong(f"{where}.{key}", "a text, a number, true, false, or a list of them", value)
    return flat


def _count(value: Any, where: str, expected: str = "a whole number of at least 1") -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise Wrong(where, expected, value)
    return value
