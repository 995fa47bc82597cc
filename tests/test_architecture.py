"""The rooms of ARCHITECTURE.md: a line knows its room by what it may name."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    str(path.relative_to(ROOT)): path for top in ("virtue_jax", "converters") for path in (ROOT / top).rglob("*.py")
}
TESTED = FILES | {
    str(p.relative_to(ROOT)): p for top in ("configs", "launch", "tests") for p in (ROOT / top).rglob("*.py")
}
LEAVES = {"config", "batch"}

# Room -> (rooms of virtue_jax, libraries) that it may name beside itself and the standard library.
ROOMS = {
    "config": (set(), set()),
    "geometry": ({"config"}, set()),
    "batch": (set(), {"numpy"}),
    "data": (
        LEAVES,
        {"numpy", "PIL", "pyarrow", "tokenizers", "transformers"}
        | {"grain", "absl", "tensorflow_datasets", "array_record"},
    ),
    "parallel": (LEAVES, {"jax", "numpy"}),
    "ops": ({"parallel"}, {"jax", "numpy"}),
    "models": (LEAVES | {"ops", "parallel"}, {"jax", "flax"}),
    "new_directory": (set(), set()),
    "lazy_write": (set(), {"jax", "numpy", "orbax", "tensorstore"}),
    "checkpoint": ({"config", "models", "new_directory", "lazy_write"}, {"jax", "numpy", "orbax"}),
    "embedder": (LEAVES | {"data", "models", "checkpoint"}, {"jax", "numpy"}),
    "eval": (LEAVES | {"data", "embedder"}, {"numpy", "rich", "matplotlib"}),
    "train": (
        LEAVES | {"data", "models", "ops", "parallel", "checkpoint", "new_directory", "geometry"},
        {"jax", "flax", "optax", "orbax", "tensorstore", "etils", "numpy", "rich", "tensorboardX"},
    ),
    "aot": (LEAVES | {"data", "models", "ops", "parallel", "train"}, {"jax", "numpy", "rich"}),
    "aot/study": ({"aot", "config", "new_directory"}, {"numpy", "rich", "matplotlib", "yaml"}),
    "cli": (
        {"aot", "config", "data", "embedder", "eval", "new_directory", "parallel", "train"},
        {"numpy", "rich", "absl", "ml_collections"},
    ),
    "__init__": ({"embedder"}, set()),
    "converters": (
        {"config", "checkpoint", "models", "new_directory", "lazy_write"},
        {"jax", "flax", "numpy", "ml_dtypes", "rich", "torch", "yaml"},
    ),
}
WITHOUT_FILES = ("config", "batch", "ops", "parallel", "models")
FILE_ACCESS = {"os", "pathlib", "io", "shutil", "tempfile", "json", "open"}


def room_of(name: str) -> str:
    parts = Path(name).with_suffix("").parts
    inner = "/".join(parts[1:3])
    return parts[0] if parts[0] == "converters" else inner if inner in ROOMS else parts[1]


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide the room"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_names_only_what_its_room_may(name):
    room = room_of(name)
    own, libraries = ROOMS[room]
    tree = ast.parse(FILES[name].read_text())
    modules = imports(tree)
    rooms = {m.split(".")[1] for m in modules if m.startswith("virtue_jax.")}
    tops = {m.split(".")[0] for m in modules} - set(sys.stdlib_module_names)
    assert rooms <= own | {room}
    assert tops <= libraries | ({"virtue_jax", "converters"} if room == "converters" else {"virtue_jax"})
    if room in WITHOUT_FILES:
        called = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not ({m.split(".")[0] for m in modules} | called) & FILE_ACCESS
    if room in ("ops", "models"):
        assert not any(m.startswith("jax.sharding") for m in modules), "meshes and shardings belong to parallel/"


def test_torch_is_named_in_one_converter_and_only_when_a_torch_file_is_opened():
    naming = {n: ast.parse(p.read_text()) for n, p in FILES.items() if "torch" in imports(ast.parse(p.read_text()))}
    assert set(naming) == {"converters/torch_file.py"}
    for tree in naming.values():
        assert not any("torch" in imports(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))


@pytest.mark.parametrize("name", sorted(TESTED))
def test_files_are_short_and_named_for_what_they_hold(name):
    assert len(TESTED[name].read_text().splitlines()) <= 300
    assert not {"utils", "util", "helpers", "helper", "misc", "common"} & set(Path(name).with_suffix("").parts)
