"""A study as a file: axes and points, values only; and the studies kept in `configs/studies/`.

    question: What does doubling the chips buy at 32 pairs a chip?   # the title of its plots
    kind: weak                # weak: pairs a chip stay; strong: the batch stays; grid: neither is asked
    x: chips                  # what plots are drawn over: chips, batch, or nothing (grid only: one bar a point)
    base: {model: 2b, batch_per_chip: 32, mesh: {data: -1}}          # what the points share
    axes:                     # every combination is a point
      topology: ["v5e:4x4", "v5e:8x8"]
      size: [{name: small, model: 2b}, {name: large, model: 7b}]     # an axis of one's own name sets several fields
    points:                   # and these
      - {topology: "v5p:4x4x4", batch: 2048, slices: 1, remat: none, set: {loss.temperature: 0.05}}

Fields of a point: `model` (2b, 7b) or `config` (a run file), `topology`, `slices`, `batch` or `batch_per_chip`, `mesh`,
`remat`, `rows` ({row group: values of it}), `set` ({path in the configuration: value}), `name`, and `effort` of the
compiler: full, or low. Low takes a fifth of the time and gives the same arithmetic and collectives, but no
cycles and a slower roofline (less is fused), so that its MFU is a lower bound of the full effort's. Points of low
effort are compared with each other alone.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from virtue_jax.aot.study.point import FULL, Point
from virtue_jax.aot.study.point_fields import FIELDS, Wrong, merge, point_of

KINDS = ("weak", "strong", "grid")
X = ("chips", "batch")
PRESETS = Path(__file__).parents[3] / "configs" / "studies"
# What is compiled first of `--study all`; then any others by name.
FIRST = ("published", "weak", "negatives", "mesh", "strong")
_KEYS = ("question", "kind", "x", "base", "axes", "points")


@dataclass(frozen=True)
class Study:
    """x: "chips", "batch" or "" (one bar a point)."""

    name: str
    question: str
    kind: str
    x: str
    points: tuple[Point, ...]


def presets() -> dict[str, Path]:
    """{name: file} of the studies that come with the code, the most important first."""
    found = {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}
    return {name: found[name] for name in dict.fromkeys([*FIRST, *found]) if name in found}


def read_study(given: str) -> Study:
    """given: a file, or a preset's name.

    Raises:
        ValueError: what is wrong, with the field's place in the file and what was expected.
        OSError: the file cannot be read.
    """
    known = presets()
    path = known.get(given, Path(given))
    if not path.is_file():
        raise ValueError(f"--study {given}: neither a file nor one of the presets: {', '.join(known)}")
    try:
        values = yaml.safe_load(path.read_text())  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML or JSON: {' '.join(str(error).split())}") from error
    try:
        return _study(path.stem, values)
    except Wrong as error:
        raise ValueError(f"{path}: {error}") from error


def _study(name: str, values: Any) -> Study:
    if not isinstance(values, dict) or not values:
        raise Wrong("the file", f"a mapping with {', '.join(_KEYS)}", values)
    for key in values:
        if key not in _KEYS:
            raise Wrong(str(key), f"one of {', '.join(_KEYS)}", key)
    kind, question = values.get("kind"), values.get("question")
    if kind not in KINDS:
        raise Wrong("kind", f"one of {', '.join(KINDS)}", kind)
    if not isinstance(question, str) or not question.strip():
        raise Wrong("question", "what the study asks, as a text", question)
    x = values.get("x") or ("" if kind == "grid" else "chips")
    if x not in (*X, "") or (kind != "grid" and x != "chips"):
        raise Wrong("x", "chips" if kind != "grid" else "chips, batch or nothing", x)
    points = _named(_points(values))
    study = Study(name, question.strip(), kind, x, tuple(points))
    _agree(study)
    return study


def _points(values: dict) -> list[tuple[str, dict, str]]:
    """(place in the file, fields, name or "")."""
    base = values.get("base") or {}
    if not isinstance(base, dict):
        raise Wrong("base", "a mapping of a point's fields", base)
    axes, explicit = values.get("axes") or {}, values.get("points") or []
    if not isinstance(axes, dict):
        raise Wrong("axes", "a mapping of names to lists of values", axes)
    if not isinstance(explicit, list):
        raise Wrong("points", "a list", explicit)
    if not axes and not explicit:
        raise Wrong("axes", "axes or points, or both", None)
    found = []
    for choice in itertools.product(*(_axis(name, each) for name, each in axes.items())) if axes else ():
        fields, place = dict(base), " x ".join(where for where, _, _ in choice)
        for where, more, _ in choice:
            fields = merge(fields, more, where)
        named = [label for _, _, label in choice if label]
        found.append((place, fields, " ".join(named) if len(named) == len(choice) else ""))
    for i, each in enumerate(explicit):
        where = f"points[{i}]"
        if not isinstance(each, dict):
            raise Wrong(where, "a mapping of a point's fields", each)
        own = {key: value for key, value in each.items() if key != "name"}
        found.append((where, merge(dict(base), own, where), str(each.get("name", ""))))
    return found


def _axis(name: str, values: Any) -> list[tuple[str, dict, str]]:
    """(place, fields that a value sets, its name or "") of each of its values."""
    if not isinstance(values, list) or not values:
        raise Wrong(f"axes.{name}", "a list of at least one value", values)
    found = []
    for i, value in enumerate(values):
        where = f"axes.{name}[{i}]"
        if name in FIELDS:
            found.append((where, {name: value}, ""))
        elif isinstance(value, dict):
            fields = {key: each for key, each in value.items() if key != "name"}
            found.append((where, fields, str(value.get("name", ""))))
        else:
            raise Wrong(where, f"a mapping of a point's fields, since {name!r} is none of {', '.join(FIELDS)}", value)
    return found


def _named(found: list[tuple[str, dict, str]]) -> list[Point]:
    """Points; those without a name are named by what differs between the study's points."""
    points = [point_of(fields, where, name) for where, fields, name in found]
    names = next((names for names in map(_names, _brief(points)) if len(set(names)) == len(names)), None)
    names = names or _names(_labels(points, *_LABELS))
    seen: dict[str, str] = {}
    named = []
    for point, short, (where, _, name) in zip(points, names, found, strict=True):
        name = name or short
        if name in seen:
            raise Wrong(where, f"a point unlike {seen[name]}, or another name", name)
        seen[name] = where
        named.append(Point(**(vars(point) | {"name": name})))
    return named


_LABELS: dict[str, Callable[[Point], str]] = {
    "stem": lambda point: point.model.split(":")[0],
    "model": lambda point: point.model,
    "pod": lambda point: point.pod,
    "split": lambda point: point.split,
    "set": lambda point: " ".join(f"{path.split('.')[-1]}={value}" for path, value in point.overrides),
    "batch": lambda point: f"batch {point.batch}",
    "effort": lambda point: "" if point.effort == FULL else f"{point.effort} effort",
}


def _brief(points: list[Point]) -> list[list[list[str]]]:
    """What may tell points apart, the briefest first."""
    brief = ("stem", "pod", "split", "set")
    return [
        _labels(points, *brief, "effort"),
        _labels(points, *brief, "batch", "effort"),
        _labels(points, "model", *brief[1:], "batch", "effort"),
    ]


def _labels(points: list[Point], *keys: str) -> list[list[str]]:
    """Of each point those that differ between them."""
    columns = [[_LABELS[key](point) for point in points] for key in keys]
    differing = [column for column in columns if len(set(column)) > 1] or [[point.pod for point in points]]
    return [list(labels) for labels in zip(*differing, strict=True)]


def _names(labels: list[list[str]]) -> list[str]:
    return [" ".join(filter(None, each)) for each in labels]


def series_of(point: Point) -> tuple:
    """What the points of one line of a scaling plot share."""
    mesh = tuple((axis, size) for axis, size in point.mesh if axis != "data")
    return point.config, point.chip, mesh, point.overrides, point.effort


def _agree(study: Study) -> None:
    """Raises `Wrong` where a weak or strong study compares what it does not hold still."""
    if study.kind == "grid":
        return
    first: dict[tuple, Point] = {}
    for point in study.points:
        one = first.setdefault(series_of(point), point)
        if study.kind == "weak" and point.batch * one.chips != one.batch * point.chips:
            pairs = f"{point.batch / point.chips:g} ({point.name})"
            raise Wrong("kind: weak", f"{one.batch / one.chips:g} pairs a chip as in {one.name}", pairs)
        if study.kind == "strong" and point.batch != one.batch:
            raise Wrong("kind: strong", f"batch {one.batch} as in {one.name}", f"{point.batch} ({point.name})")
