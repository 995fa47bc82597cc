"""The run to be compiled: scaled row groups, and the useful work of a step without data."""

import dataclasses
import importlib

import pytest

from virtue_jax.aot.workload import published_work, with_batch
from virtue_jax.chips import chip_of
from virtue_jax.cli.main import main
from virtue_jax.config import from_dict
from virtue_jax.exit_status import REFUSED
from virtue_jax.published_models import published_geometry
from virtue_jax.train.cost.flops import useful_flops
from virtue_jax.train.cost.work import Work, capacity
from virtue_jax.train.step.config import ModelConfig, TrainConfig
from virtue_jax.train.weights import model_geometry


@pytest.fixture(scope="module")
def scar() -> TrainConfig:
    return from_dict(TrainConfig, importlib.import_module("configs.virtue_2b_scar").get_config("large").to_dict())


def rows_of(config):
    return {name: group.rows for name, group in config.data.rows.items()}


def test_twice_the_batch_has_twice_the_rows_and_streams(scar):
    double = with_batch(scar, 2 * scar.batch_size, shards=256)
    assert rows_of(double) == {name: 2 * rows for name, rows in rows_of(scar).items()}
    assert double.data.streams == 2 * scar.data.streams and double.batch_size == 2 * scar.batch_size


def test_rows_are_rounded_up_to_what_the_devices_divide(scar):
    small = with_batch(scar, 1024, shards=256)
    assert set(rows_of(small).values()) == {256}  # 128 of each would do
    assert all(rows % small.data.streams == 0 for rows in rows_of(small).values())


def test_a_run_without_row_groups_cannot_be_scaled(scar):
    bare = dataclasses.replace(scar, data=dataclasses.replace(scar.data, rows={}))
    with pytest.raises(ValueError, match="virtue rows"):
        with_batch(bare, 1024, shards=8)


def test_useful_work_is_what_the_rows_hold_less_their_padding(scar):
    virtue = published_geometry("2b")
    pairs, work = published_work(scar, virtue)
    assert 0.95 * scar.batch_size < pairs <= scar.batch_size
    room = sum((capacity(group) for group in scar.data.rows.values()), Work())
    assert 0.93 < work.tokens / room.tokens < 0.97
    assert 0.80 < work.patches / room.patches < 0.90
    assert work.images == pytest.approx(pairs, rel=1e-3)  # one query with an image a pair
    trained = {"connector.reduce.kernel", "text.layers.mlp.down_proj.lora_a"}
    assert useful_flops(virtue, work, trained).total < useful_flops(virtue, room, trained).total


def test_a_model_needs_a_directory_or_a_size():
    config = TrainConfig(ModelConfig(directory="nowhere", size="7b"), None, steps=1, batch_size=1)
    assert model_geometry(config) == published_geometry("7b")
    with pytest.raises(ValueError, match=r"nowhere does not exist.*model\.size=2b or 7b"):
        model_geometry(TrainConfig(ModelConfig(directory="nowhere"), None, steps=1, batch_size=1))


@pytest.mark.parametrize("name", ["v5e", "v9:4x4", "v5e:4", "v5e:4x4x4x4", "v5e-16"])
def test_a_topology_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="expected CHIP:AxB"):
        chip_of(name)


@pytest.mark.parametrize("name", ["v5e:4x4x4", "v5e:3x5", "v6e:16x32", "v5p:4x4", "tpu7x:2x2"])
def test_a_slice_that_a_chip_has_not_is_refused_before_the_compiler_sees_it(name):
    with pytest.raises(ValueError, match=f"'{name}': slices of"):
        chip_of(name)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--config", "configs/virtue_2b_scar.py"], "usage"),
        (["--config", "configs/virtue_2b_scar.py", "--topology", "v5e:4x4", "--mesh", "rows=4"], "expected data=N"),
        (["--config", "configs/virtue_2b_scar.py", "--topology", "v5e:4x4", "--set", "batch"], "expected NAME=VALUE"),
        (["--config", "configs/virtue_2b_scar.py", "--topology", "moon"], "expected CHIP:AxB"),
        (["--config", "configs/virtue_2b_scar.py", "--topology", "v5e:4x4", "--mesh", "fsdp=3"], "does not fit 16"),
        (["--config", "configs/virtue_2b_scar.py", "--topology", "v5e:4x4", "--json", "no/x.json"], "no such folder"),
        (
            ["--config", "configs/virtue_2b_scar.py", "--topology", "v5e:4x4", "--batch", "0"],
            "0 is not a positive",
        ),
        (["--config", "configs/virtue_2b_scar.py:no", "--topology", "v5e:4x4"], "ValueError: variant 'no'"),
    ],
)
def test_the_command_refuses_what_cannot_be(line, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["compile", *line])
    assert ended.value.code == REFUSED
    assert said in capsys.readouterr().err
