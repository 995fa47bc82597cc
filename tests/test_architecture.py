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

GROUND = {"data"}  # the files of data/ itself: what a person gives, and what the configuration says of data
_TRAIN = LEAVES | {"data", "data/packing", "models", "parallel", "published_models"}
_TRAIN |= {"disk", "atomic_files", "exit_status"}

# Room -> (rooms of virtue_jax, libraries) that it may name beside itself and the standard library. A folder that has
# drawers is a room of its own: the files that lie in it directly.
ROOMS = {
    "config": (set(), set()),
    "published_models": ({"config"}, set()),
    "batch": (set(), {"numpy"}),
    "chips": (set(), set()),
    "disk": (set(), set()),
    "atomic_files": (set(), set()),
    "exit_status": (set(), set()),
    "console": (set(), {"rich"}),
    "data": (LEAVES | {"disk"}, {"numpy", "PIL"}),
    "data/encoding": (LEAVES | GROUND, {"numpy", "PIL", "tokenizers", "transformers"}),
    "data/packing": (LEAVES | GROUND | {"data/encoding"}, {"numpy"}),
    "data/loading": (LEAVES | GROUND | {"data/encoding", "data/packing"}, {"numpy", "grain"}),
    "data/formats": (
        LEAVES | GROUND | {"data/encoding", "disk", "atomic_files"},
        {"numpy", "PIL", "pyarrow", "tensorflow_datasets", "array_record"},
    ),
    "data/sources": (LEAVES | GROUND | {"data/encoding", "data/loading", "data/formats"}, {"numpy"}),
    "data/scenes": (GROUND | {"data/formats"}, {"numpy", "PIL", "pyarrow"}),
    "data/row_groups": (
        LEAVES | GROUND | {"data/encoding", "data/packing", "data/loading", "data/formats"},
        {"numpy", "PIL"},
    ),
    "parallel": (LEAVES, {"jax", "numpy"}),
    "ops": ({"parallel"}, {"jax", "numpy"}),
    "models": (LEAVES | {"ops", "parallel"}, {"jax", "flax"}),
    "array_store": (set(), {"jax", "numpy", "tensorstore"}),
    "model_directory": ({"config", "models", "atomic_files", "array_store"}, {"jax", "numpy"}),
    "embedding": (
        LEAVES
        | GROUND
        | {"data/encoding", "data/packing", "data/formats", "models", "model_directory", "ops", "parallel"},
        {"jax", "numpy"},
    ),
    "eval": (
        LEAVES | GROUND | {"data/encoding", "data/formats", "parallel", "embedding"},
        {"numpy", "rich", "matplotlib"},
    ),
    "compilation_cache": (set(), {"jax"}),
    "train/step": (_TRAIN | {"ops", "eval"}, {"jax", "flax", "optax", "numpy"}),
    "train/cost": (_TRAIN | {"ops", "train/step"}, {"jax", "flax", "numpy"}),
    "train/survival": (_TRAIN | {"train/step"}, {"jax", "optax", "orbax", "tensorstore", "etils", "numpy"}),
    "train/reporting": (
        _TRAIN | {"ops", "train/step", "train/cost", "train/survival"},
        {"jax", "numpy", "rich", "tensorboardX"},
    ),
    "train": (
        _TRAIN
        | {"train/step", "train/cost", "train/survival", "train/reporting", "model_directory", "ops", "console"}
        | {"data/encoding", "data/loading", "data/sources", "data/row_groups", "embedding", "eval"},
        {"jax", "flax", "numpy", "scipy", "rich", "orbax", "etils"},
    ),
    "aot/hlo": (LEAVES | {"chips", "models", "ops"}, {"jax", "numpy"}),
    "aot": (
        LEAVES
        | {"data/packing"}
        | {"data", "data/row_groups", "models", "ops", "parallel", "chips", "aot/hlo", "train", "train/step"}
        | {"train/cost"},
        {"jax", "numpy", "rich"},
    ),
    "aot/study": (
        {"aot", "chips", "config", "atomic_files", "exit_status", "console"},
        {"numpy", "rich", "matplotlib", "yaml"},
    ),
    "cli": (
        {"aot", "aot/study", "chips", "config", "data", "data/formats", "data/sources", "data/row_groups"}
        | {"compilation_cache", "console", "exit_status", "model_directory"}
        | {"data/scenes", "embedding", "eval", "atomic_files", "parallel", "train", "train/step", "train/survival"},
        {"numpy", "rich", "absl", "ml_collections"},
    ),
    "__init__": ({"embedding"}, set()),
    "converters": (
        {"config", "model_directory", "models", "atomic_files", "array_store", "console", "exit_status"},
        {"jax", "flax", "numpy", "ml_dtypes", "rich", "safetensors", "torch", "yaml"},
    ),
}
WITHOUT_FILES = ("config", "batch", "ops", "parallel", "models")
FILE_ACCESS = {"os", "pathlib", "io", "shutil", "tempfile", "json", "open"}


def room_of(name: str) -> str:
    """The innermost room that a file is in."""
    parts = Path(name).with_suffix("").parts
    if parts[0] == "converters":
        return "converters"
    inner = "/".join(parts[1:3])
    return inner if inner in ROOMS else parts[1]


def room_of_module(module: str) -> str:
    return room_of(module.replace(".", "/") + ".py")


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
    rooms = {room_of_module(m) for m in modules if m.startswith("virtue_jax.")}
    tops = {m.split(".")[0] for m in modules} - set(sys.stdlib_module_names)
    assert rooms <= own | {room}
    assert tops <= libraries | ({"virtue_jax", "converters"} if room == "converters" else {"virtue_jax"})
    if room in WITHOUT_FILES:
        called = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not ({m.split(".")[0] for m in modules} | called) & FILE_ACCESS
    if room in ("ops", "models"):
        assert not any(m.startswith("jax.sharding") for m in modules), "meshes and shardings belong to parallel/"


def test_no_two_rooms_import_each_other():
    """Above all not a folder and its drawers: data flows one way."""
    named = {(room_of(name), room) for name, path in FILES.items() for room in _rooms_named(path)}
    assert not {(a, b) for a, b in named if a < b and (b, a) in named}


def _rooms_named(path: Path) -> set[str]:
    modules = imports(ast.parse(path.read_text()))
    return {room_of_module(m) for m in modules if m.startswith("virtue_jax.")}


def test_torch_is_named_in_one_converter_and_only_when_a_torch_file_is_opened():
    naming = {n: ast.parse(p.read_text()) for n, p in FILES.items() if "torch" in imports(ast.parse(p.read_text()))}
    assert set(naming) == {"converters/torch_file.py"}
    for tree in naming.values():
        assert not any("torch" in imports(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))


@pytest.mark.parametrize("name", sorted(TESTED))
def test_files_are_short_and_named_for_what_they_hold(name):
    assert len(TESTED[name].read_text().splitlines()) <= 300
    assert not {"utils", "util", "helpers", "helper", "misc", "common"} & set(Path(name).with_suffix("").parts)
