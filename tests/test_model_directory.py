"""The model directory: whole or absent, exact, in the dtype that is asked for."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from virtue_jax.array_store import LazyArray
from virtue_jax.atomic_files import new_directory
from virtue_jax.config import AdapterConfig, HieraConfig, Numerics, Sam2Config, TextConfig, VirtueConfig, VisionConfig
from virtue_jax.model_directory import (
    abstract_parameters,
    companions,
    load_config,
    load_model,
    load_parameters,
    parameter_shapes,
    read_parameters,
    save_model,
    stored_parameters,
)
from virtue_jax.models.parameters import parameters

CONFIG = VirtueConfig(
    sam2=Sam2Config(
        hiera=HieraConfig(8, 1, (1, 2, 1, 1), (2,), (8, 4, 2, 1), (2, 2)),
        d_model=16,
        image_size=128,
        decoder_heads=2,
        decoder_mlp_dim=32,
    ),
    vision=VisionConfig(depth=2, embed_dim=16, num_heads=2, hidden_size=32),
    text=TextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        mrope_section=(1, 1, 2),
        image_token_id=5,
        vision_start_token_id=3,
        vision_end_token_id=4,
    ),
    adapter=AdapterConfig(rank=2),
)


@pytest.fixture(scope="module")
def params() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(CONFIG)
    return {path: rng.standard_normal(shape).astype(np.float32) for path, shape in shapes.items()}


@pytest.fixture(scope="module")
def directory(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "source.yaml").write_text("a: 1")
    save_model(
        folder / "model",
        CONFIG,
        params,
        files=[folder / "tokenizer.json"],
        carried=[folder / "source.yaml"],
        provenance={"made_by": "a test"},
    )
    return folder / "model"


def test_what_is_saved_is_loaded_bit_for_bit(directory, params):
    config, model = load_model(directory, Numerics())
    assert config == CONFIG == load_config(directory)
    loaded = parameters(model)
    assert set(loaded) == set(params)
    for path, value in params.items():
        assert isinstance(loaded[path], jax.Array)
        np.testing.assert_array_equal(loaded[path], value, err_msg=path)


def test_jax_arrays_numpy_arrays_and_lazy_ones_are_saved_alike(params, tmp_path):
    mixed = {}
    for i, (path, value) in enumerate(params.items()):
        lazy = LazyArray(value.shape, value.dtype, lambda begin, end, v=value: v[begin:end])
        mixed[path] = (jax.numpy.asarray(value), value, lazy)[i % 3]
    save_model(tmp_path / "model", CONFIG, mixed)
    for path, value in parameters(load_model(tmp_path / "model", Numerics())[1]).items():
        np.testing.assert_array_equal(value, params[path], err_msg=path)


def test_a_lazy_array_is_made_in_blocks_that_cover_it_once(params, tmp_path, monkeypatch):
    monkeypatch.setattr("virtue_jax.array_store._BLOCK_BYTES", 1 << 14)
    path, calls, steps = "text.layers.mlp.up_proj.kernel", [], []
    value = params[path]

    def read(begin: int, end: int) -> np.ndarray:
        calls.append((begin, end))
        return value[begin:end]

    lazy = LazyArray(value.shape, value.dtype, read)
    save_model(tmp_path / "model", CONFIG, params | {path: lazy}, progress=steps.append)
    assert calls == [(0, 2), (2, 3)]
    assert sum(steps) == sum(x.nbytes for x in params.values())
    np.testing.assert_array_equal(read_parameters(tmp_path / "model", [path])[path], value)


def test_parameters_come_in_the_dtype_asked_for_path_by_path(directory, params):
    trained = {path: "float32" for path in params if ".lora_" in path}
    _, model = load_model(directory, Numerics(params="bfloat16"), dtypes=trained)
    own = abstract_parameters(CONFIG, "bfloat16")
    for path, value in parameters(model).items():
        wanted = jax.numpy.float32 if path in trained else own[path].dtype
        assert value.dtype == wanted, path
        np.testing.assert_array_equal(value, params[path].astype(wanted), err_msg=path)


def test_parameters_come_with_the_sharding_asked_for(directory, params):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    path = "text.embed_tokens.embedding"
    _, model = load_model(directory, Numerics(), shardings={path: sharding})
    assert parameters(model)[path].sharding == sharding
    with pytest.raises(ValueError, match="do not exist: \\['nowhere'\\]"):
        load_model(directory, Numerics(), shardings={"nowhere": sharding})


def test_some_parameters_can_be_loaded_alone(directory, params):
    path = "connector.fc1.kernel"
    wanted = {path: jax.ShapeDtypeStruct(params[path].shape, "float32")}
    np.testing.assert_array_equal(load_parameters(directory, wanted, partial=True)[path], params[path])
    with pytest.raises(ValueError, match=r"unknown connector\.fc1\.bias"):
        load_parameters(directory, wanted)


def test_config_fields_can_be_overridden(directory):
    config, _ = load_model(directory, Numerics(), points_per_side=7)
    assert config.points_per_side == 7


def test_every_parameter_that_does_not_fit_is_named_on_loading(directory):
    with pytest.raises(ValueError, match="parameters do not fit") as caught:
        load_model(
            directory, Numerics(), adapter=dataclasses.replace(CONFIG.adapter, rank=3, targets=("q_proj", "up_proj"))
        )
    text = str(caught.value)
    assert "missing text.layers.mlp.up_proj.lora_a (3, 32, 3)" in text
    assert "unknown text.layers.self_attn.k_proj.lora_b (3, 2, 16)" in text
    assert "text.layers.self_attn.q_proj.lora_a has shape (3, 32, 2), the model needs (3, 32, 3)" in text


def test_every_parameter_that_does_not_fit_is_named_on_saving(params, tmp_path):
    wrong = {path: value for path, value in params.items() if path != "text.norm.scale"}
    wrong |= {"text.head": np.zeros(2), "sam2.no_mem_embed": np.zeros(5)}
    with pytest.raises(ValueError, match="3 parameters do not fit") as caught:
        save_model(tmp_path / "model", CONFIG, wrong)
    for part in ("missing text.norm.scale (32,)", "unknown text.head (2,)", "sam2.no_mem_embed has shape (5,)"):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_companions_carry_over_to_a_copy(directory, params, tmp_path):
    save_model(tmp_path / "copy", CONFIG, params, **companions(directory))
    assert (tmp_path / "copy/tokenizer.json").read_text() == "{}"
    assert (tmp_path / "copy/carried/source.yaml").read_text() == "a: 1"


def test_what_is_no_model_directory_is_told(directory, tmp_path):
    with pytest.raises(FileNotFoundError, match="not a model directory"):
        load_config(tmp_path)
    file = tmp_path / "virtue_config.json"
    file.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        load_config(tmp_path)
    head = json.loads((directory / "virtue_config.json").read_text())
    file.write_text(json.dumps(head | {"version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        load_config(tmp_path)
    head["config"]["text"]["colour"] = 3
    file.write_text(json.dumps(head))
    with pytest.raises(ValueError, match=r"virtue_config.json.text \(TextConfig\): unknown keys \['colour'\]"):
        load_config(tmp_path)


def test_missing_and_damaged_parameters_are_told(directory, tmp_path):
    (tmp_path / "virtue_config.json").write_bytes((directory / "virtue_config.json").read_bytes())
    with pytest.raises(FileNotFoundError, match="not whole"):
        load_model(tmp_path, Numerics())
    (tmp_path / "params").mkdir()
    with pytest.raises(ValueError, match="is damaged"):
        load_model(tmp_path, Numerics())
    assert len(stored_parameters(directory)) == len(parameter_shapes(CONFIG))


def test_an_error_while_writing_leaves_nothing_and_the_old_directory_as_it_was(params, tmp_path):
    save_model(tmp_path / "model", CONFIG, params)

    def fail(begin: int, end: int):
        raise ValueError("this tensor is bad")

    path = "text.layers.mlp.up_proj.kernel"
    broken = params | {path: LazyArray(params[path].shape, params[path].dtype, fail)}
    with pytest.raises(ValueError, match="this tensor is bad"):
        save_model(tmp_path / "model", CONFIG, broken, overwrite=True)
    assert [child.name for child in tmp_path.iterdir()] == ["model"]
    np.testing.assert_array_equal(read_parameters(tmp_path / "model", [path])[path], params[path])


def test_a_directory_is_replaced_only_when_asked_and_only_when_done(params, tmp_path):
    save_model(tmp_path / "model", CONFIG, params)
    with pytest.raises(FileExistsError):
        save_model(tmp_path / "model", CONFIG, params)
    changed = {path: value + 1 for path, value in params.items()}
    save_model(tmp_path / "model", CONFIG, changed, overwrite=True)
    np.testing.assert_array_equal(
        read_parameters(tmp_path / "model", params)["text.norm.scale"], params["text.norm.scale"] + 1
    )
    assert [child.name for child in tmp_path.iterdir()] == ["model"]


def dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path):
    host = os.uname().nodename
    dead = tmp_path / f".out.incomplete.{host}.{dead_process()}"
    alive = tmp_path / f".out.incomplete.{host}.{os.getppid()}"
    other = tmp_path / f".outlook.incomplete.{host}.{dead_process()}"
    for folder in (dead, alive, other):
        folder.mkdir()
    with new_directory(tmp_path / "out") as folder:
        (folder / "x").write_text("1")
    assert sorted(child.name for child in tmp_path.iterdir()) == sorted([alive.name, other.name, "out"])


def test_a_process_killed_between_the_two_renames_loses_nothing(tmp_path):
    """The old directory had been moved aside and the new one was not yet in its place."""
    aside = tmp_path / f".out.replaced.{os.uname().nodename}.{dead_process()}"
    aside.mkdir()
    (aside / "x").write_text("old")
    with pytest.raises(FileExistsError), new_directory(tmp_path / "out"):
        pass
    assert (tmp_path / "out/x").read_text() == "old"
