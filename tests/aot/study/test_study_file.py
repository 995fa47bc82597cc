"""A study's file gives its points, or an error with the field's place and what was expected."""

import json

import pytest
import yaml

from virtue_jax.aot.study.study_file import presets, read_study, series_of

GRID = {
    "question": "Which?",
    "kind": "grid",
    "base": {"model": "2b", "batch_per_chip": 32, "set": {"loss.temperature": 0.05}},
    "axes": {
        "topology": ["v5e:4x4", "v5p:4x4x4"],
        "how": [{"name": "kept", "remat": "none"}, {"name": "again", "remat": "layer", "set": {"seed": 1}}],
    },
    "points": [{"topology": "v6e:8x8", "slices": 2, "batch": 64, "mesh": {"fsdp": 4}, "name": "far", "model": "7b"}],
}


def written(tmp_path, values):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)


def test_axes_multiply_and_points_are_added(tmp_path):
    study = read_study(written(tmp_path, GRID))
    assert (study.name, study.question, study.kind, study.x) == ("study", "Which?", "grid", "")
    assert len(study.points) == 5
    first, last = study.points[0], study.points[-1]
    assert first.arguments() == [
        *("--config", "configs/virtue_2b_scar.py:large", "--topology", "v5e:4x4", "--batch", "512"),
        *("--config.loss.temperature=0.05", "--config.numerics.remat=none"),
    ]
    assert last.arguments() == [
        *("--config", "configs/virtue_7b_scar.py:large", "--topology", "v6e:8x8", "--batch", "64"),
        *("--slices", "2", "--mesh", "data=-1,fsdp=4,tensor=1", "--config.loss.temperature=0.05"),
    ]
    assert last.name == "far" and last.chips == 128 and last.pod == "2 x v6e 8x8"
    assert dict(study.points[1].overrides) == {"loss.temperature": 0.05, "numerics.remat": "layer", "seed": 1}


def test_points_are_named_by_what_differs(tmp_path):
    values = {"question": "?", "kind": "grid", "base": {"model": "2b", "topology": "v5e:4x4"}}
    study = read_study(written(tmp_path, values | {"axes": {"batch": [16, 32], "mesh": [{"data": -1}, {"fsdp": 4}]}}))
    assert [point.name for point in study.points] == [
        "data batch 16",
        "fsdp 4 batch 16",
        "data batch 32",
        "fsdp 4 batch 32",
    ]


def test_row_groups_and_lists_become_values_of_the_run_file(tmp_path):
    rows = {"images_1": {"rows": 64, "shape": {"slots": 1024}}}
    point = {"model": "2b", "topology": "v5e:4x4", "batch": 16, "rows": rows, "set": {"profile_steps": [1, 2]}}
    (point,) = read_study(written(tmp_path, {"question": "?", "kind": "grid", "points": [point]})).points
    assert point.values() == [
        "--config.data.rows.images_1.rows=64",
        "--config.data.rows.images_1.shape.slots=1024",
        "--config.profile_steps=(1, 2)",
    ]


def test_effort_is_asked_where_it_is_low_and_tells_points_apart(tmp_path):
    base = {"model": "2b", "topology": "v5e:4x4", "batch": 16}
    values = {"question": "?", "kind": "grid", "base": base, "points": [{}, {"effort": "low"}]}
    full, low = read_study(written(tmp_path, values)).points
    assert "--effort" not in full.arguments() and low.arguments()[-2:] == ["--effort", "low"]
    assert (full.effort, low.effort, low.name) == ("full", "low", "low effort") and full.name != low.name
    assert full.identity() != low.identity() and full.file_name() != low.file_name()
    assert series_of(full) != series_of(low)


def test_json_is_read_too(tmp_path):
    path = tmp_path / "study.json"
    path.write_text(json.dumps(GRID))
    assert len(read_study(str(path)).points) == 5


def without(key):
    return {name: value for name, value in GRID.items() if name != key}


SCALING = {"question": "?"}
POINT = {"model": "2b", "topology": "v5e:4x4", "batch": 16}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["a list"], ["the file: expected a mapping"]),
        (GRID | {"axis": {}}, ["axis: expected one of question, kind"]),
        (GRID | {"kind": "big"}, ["kind: expected one of weak, strong, grid, got 'big'"]),
        (without("question"), ["question: expected what the study asks"]),
        (GRID | {"x": "time"}, ["x: expected chips, batch or nothing, got 'time'"]),
        (without("axes") | {"points": []}, ["axes: expected axes or points"]),
        (GRID | {"axes": {"topology": []}}, ["axes.topology: expected a list of at least one value, got []"]),
        (GRID | {"axes": {"sise": [1]}}, ["axes.sise[0]: expected a mapping of a point's fields"]),
        (
            GRID | {"points": [POINT | {"topology": "v5x:4x4"}]},
            ["points[0].topology", "CHIP:AxB", "'v5x:4x4'"],
        ),
        (GRID | {"points": [POINT | {"topology": "v5e:4x4x4"}]}, ["points[0].topology", "slices of v5e are 1x1, 2x2"]),
        (GRID | {"points": [POINT | {"batch_per_chip": 4}]}, ["points[0]: expected batch or batch_per_chip"]),
        (GRID | {"points": [POINT | {"batch": 0}]}, ["points[0].batch: expected a whole number of at least 1", "0"]),
        (GRID | {"points": [POINT | {"batch": True}]}, ["points[0].batch"]),
        (GRID | {"points": [POINT | {"model": "3b"}]}, ["points[0].model: expected 2b or 7b", "'3b'"]),
        (GRID | {"points": [POINT | {"mesh": {"fsdp": 0}}]}, ["points[0].mesh.fsdp: expected a whole number"]),
        (GRID | {"points": [POINT | {"mesh": {"model": 2}}]}, ["points[0].mesh: expected sizes of data, fsdp, tensor"]),
        (GRID | {"points": [POINT | {"remat": "some"}]}, ["points[0].remat: expected one of none, layer"]),
        (GRID | {"points": [POINT | {"effort": "lo"}]}, ["points[0].effort: expected full or low, got 'lo'"]),
        (GRID | {"base": GRID["base"] | {"effort": True}}, [".effort: expected full or low, got True"]),
        (GRID | {"points": [POINT | {"wide": 1}]}, ["points[0].wide: expected one of model, config"]),
        (GRID | {"points": [POINT | {"set": {"config.seed": 1}}]}, ["points[0].set: expected paths within"]),
        (GRID | {"points": [POINT | {"set": {"seed": None}}]}, ["points[0].set.seed: expected a text, a number"]),
        (without("axes") | {"points": [POINT, POINT]}, ["points[1]: expected a point unlike points[0]"]),
        (
            {"question": "?", "kind": "weak", "points": [POINT, POINT | {"topology": "v5e:8x8"}]},
            ["1 pairs a chip", "0.25"],
        ),
        (SCALING | {"kind": "strong", "points": [POINT, POINT | {"batch": 32}]}, ["batch 16", "32"]),
    ],
)
def test_a_bad_study_is_refused_with_the_place_and_what_was_expected(tmp_path, values, told):
    with pytest.raises(ValueError) as error:
        read_study(written(tmp_path, values))
    assert str(tmp_path) in str(error.value)
    for part in told:
        assert part in str(error.value)


def test_what_is_neither_file_nor_preset_is_told_with_the_presets():
    with pytest.raises(ValueError, match=f"neither a file nor one of the presets: {', '.join(presets())}"):
        read_study("nothing")


def test_a_file_that_is_no_yaml_is_told(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("a: [")
    with pytest.raises(ValueError, match="expected YAML or JSON"):
        read_study(str(path))


def test_presets_ask_few_compilations_and_every_question():
    studies = [read_study(name) for name in presets()]
    assert {"weak", "strong", "grid"} == {study.kind for study in studies}
    points = {point.identity(): point for study in studies for point in study.points}
    assert [name for name in presets()][:2] == ["published", "weak"]
    full = {point.identity() for point in points.values() if point.effort == "full"}
    assert len(full) == 5 and len(points) - len(full) <= 24
    assert full == {point.identity() for point in studies[0].points}
    asked = {(point.model[:2], point.topology) for point in points.values()}
    assert {("2b", f"v5e:{side}x{side}") for side in (4, 8, 16)} <= asked
    assert {
        ("2b", "v5p:4x4x4"),
        ("2b", "v5p:8x8x8"),
        ("2b", "v6e:16x16"),
        ("7b", "v5p:4x4x4"),
        ("7b", "v6e:16x16"),
    } <= asked
