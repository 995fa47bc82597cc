"""A point's key changes with whatever changes its program or report, and with nothing else."""

from dataclasses import replace

import pytest

from virtue_jax.aot.study import content_key
from virtue_jax.aot.study.content_key import ContentKeys, code_digest, program_sources
from virtue_jax.aot.study.point import Point

POINT = Point("a", "a.py", "v5e:4x4", 16, overrides=(("seed", 1),))
VALUES = {"batch_size": 16, "data": {"rows": (1, 2)}}
FILES = {
    "package/__init__.py": "",
    "package/compile.py": "from package import step\nfrom package.flags import FLAGS\nimport json\n",
    "package/step.py": "def step():\n    from package.deep.inner import f\n    return f\n",
    "package/flags.py": "FLAGS = {'v5e': 1}\n",
    "package/deep/inner.py": "def f():\n    return 1\n",
    "package/other.py": "def g():\n    return 1\n",
}


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def key(root, point=POINT, values=VALUES) -> str:
    return ContentKeys(lambda *_: values, entries=["package.compile"], root=root).key(point)


def test_what_a_program_imports_is_found_however_deep(root):
    names = list(program_sources(["package.compile"], root))
    assert names == ["package", "package.compile", "package.deep.inner", "package.flags", "package.step"]


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 32},
        {"topology": "v5e:8x8"},
        {"slices": 2},
        {"effort": "low"},
        {"mesh": (("data", -1), ("fsdp", 4), ("tensor", 1))},
    ],
)
def test_what_is_asked_is_part_of_the_key(root, change):
    assert key(root, replace(POINT, **change)) != key(root)


def test_the_run_files_values_are_part_of_the_key_and_its_name_is_not(root):
    assert key(root, values=VALUES | {"batch_size": 32}) != key(root)
    assert key(root, replace(POINT, name="b", config="b.py", overrides=(("seed", 2),))) == key(root)


@pytest.mark.parametrize("name", [name for name in FILES if name != "package/other.py"])
def test_every_source_that_determines_the_program_is_part_of_the_key(root, name):
    before = key(root)
    (root / name).write_text(FILES[name] + "NEW = 1\n")
    assert key(root) != before


def test_other_sources_comments_docstrings_and_layout_are_no_part_of_it(root):
    before = key(root)
    (root / "package/other.py").write_text("NEW = 1\n")
    (root / "package/deep/inner.py").write_text(
        '"""A docstring."""\n\n\ndef f():\n    """Another."""\n    return (1)  # why\n'
    )
    assert key(root) == before


def test_versions_are_part_of_it(root, monkeypatch):
    before = key(root)
    monkeypatch.setattr(content_key, "version", lambda name: "0.0.0")
    assert key(root) != before


def test_the_geometry_of_a_model_directory_is_part_of_it(root, tmp_path):
    values = VALUES | {"model": {"directory": str(tmp_path / "model")}}
    before = key(root, values=values)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/virtue_config.json").write_text("{}")
    assert key(root, values=values) != before


def test_another_compile_program_is_part_of_it(root):
    other = ContentKeys(lambda *_: VALUES, entries=["package.compile"], root=root, program="/elsewhere/virtue")
    assert other.key(POINT) != key(root)


def test_a_run_file_that_cannot_be_used_is_told_with_the_point(root):
    def resolve(path, settings):
        assert (path, settings) == ("a.py", ["--config.seed=1"])
        raise ValueError("no section")

    with pytest.raises(ValueError, match="point 'a': no section"):
        ContentKeys(resolve, entries=["package.compile"], root=root).key(POINT)


def test_the_packages_own_step_is_among_the_sources():
    sources = program_sources(content_key.ENTRIES, content_key.ROOT)
    assert {"virtue_jax.train.step.stages", "virtue_jax.ops.attention", "virtue_jax.parallel.shardings"} <= set(sources)
    assert not any(name.startswith("virtue_jax.aot.study") for name in sources)
    assert len({code_digest(path) for path in sources.values()}) > 10
