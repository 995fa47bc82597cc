"""What a point's report depends on, as one digest: two points with the same key need one compilation."""

import ast
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from virtue_jax.aot.study.point import Point

ROOT = Path(__file__).parents[3]
# The compile command and the step that it lowers; what they import is found from there.
ENTRIES = ("virtue_jax.cli.compile", "virtue_jax.train.step.setup")
# Reached by imports, and still without a part in the program or its report.
WITHOUT_PART = ("virtue_jax.aot.study", "virtue_jax.aot.calibration", "virtue_jax.aot.print_report")
GEOMETRY = "virtue_config.json"  # in a model directory
LIBRARIES = ("jax", "jaxlib", "libtpu", "flax", "optax")


class ContentKeys:
    """Keys of points; sources are read once.

    resolve: (run file, its settings: `--config.x=y`) -> its values. entries: modules whose imports, and
    theirs, are the package's part in a program. program: the compile command where it is not this package's own: it
    may have other versions than this process.
    """

    def __init__(
        self,
        resolve: Callable[[str, list[str]], dict],
        *,
        entries: Sequence[str] = ENTRIES,
        root: Path = ROOT,
        program: str = "",
    ) -> None:
        self._resolve, self._entries, self._root, self._program = resolve, entries, root, program

    def key(self, point: Point) -> str:
        """The digest of a point: what is asked, its run file's values, versions and sources.

        Raises:
            ValueError: the run file cannot be used with the point's values.
        """
        try:
            values = self._resolve(point.config, point.values())
        except ValueError as error:
            raise ValueError(f"point {point.name!r}: {error}") from error
        asked = {key: value for key, value in point.inputs().items() if key not in ("config", "overrides")}
        told = {"asked": asked, "values": values, "versions": versions(), "sources": self._sources}
        told |= {"program": self._program, "model": _model_files(values)}
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:24]

    @cached_property
    def _sources(self) -> dict[str, str]:
        """{module: digest of its code}; the table of compiler flags is among them."""
        return {name: code_digest(path) for name, path in program_sources(self._entries, self._root).items()}


def _model_files(values: dict) -> str:
    """The geometry in the run's model directory, where that is there: it goes before the published one."""
    directory = (values.get("model") or {}).get("directory")
    path = Path(directory) / GEOMETRY if directory else None
    return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else ""


def versions() -> dict[str, str]:
    """Of the libraries that make the program; "" = not installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def program_sources(entries: Sequence[str], root: Path) -> dict[str, Path]:
    """{module: file} of everything below `root` that `entries` import, wherever in a file, and what that imports."""
    found: dict[str, Path] = {}
    waiting = list(entries)
    tops = {entry.split(".")[0] for entry in entries}
    while waiting:
        name = waiting.pop()
        path = _file(name, root)
        if name in found or path is None or any(name == left or name.startswith(left + ".") for left in WITHOUT_PART):
            continue
        found[name] = path
        waiting += [each for each in _imported(path) if each.split(".")[0] in tops]
    return dict(sorted(found.items()))


def code_digest(path: Path) -> str:
    """Of what a file does: comments, docstrings and layout have no part in it."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _file(name: str, root: Path) -> Path | None:
    base = root.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _imported(path: Path) -> set[str]:
    """Names that may be modules: `from a import b` gives a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found
