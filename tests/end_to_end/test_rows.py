"""`virtue rows` tells row groups that a run file can hold; a run without any chooses the same."""

import dataclasses

import pytest
import tiny_run
from rich.console import Console

from virtue_jax.batch import RowShape
from virtue_jax.cli.main import main
from virtue_jax.cli.rows import tell
from virtue_jax.config import from_dict, to_dict
from virtue_jax.data.config import DataConfig
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.row_groups.choose import Chosen
from virtue_jax.data.row_groups.simulate import (
    GroupFigures,
    PackingFigures,
    SampleOrder,
    most_pairs,
    simulate,
)
from virtue_jax.data.sources.open_data import open_sources
from virtue_jax.train.rows import length_steps, resolve_rows, stated_needs
from virtue_jax.train.step.config import TrainConfig
from virtue_jax.train.step.setup import with_attention


@pytest.fixture(scope="module")
def config(scenes, tiny_virtue) -> TrainConfig:
    values = tiny_run.get_config("point").to_dict()
    values["model"]["directory"] = str(tiny_virtue)
    values["data"]["sources"]["scenes"]["path"] = str(scenes)
    values["data"]["rows"] = {}
    return with_attention(from_dict(TrainConfig, values), "cpu")


@pytest.fixture(scope="module")
def resolved(config) -> DataConfig:
    _, virtue = stated_needs(config)
    sources = open_sources(config.data, config.seed)
    return resolve_rows(config, sources, virtue, Tokenizer.load(config.model.directory), shards=2)


def test_chosen_rows_place_the_batch_and_can_be_stored(config, resolved):
    assert from_dict(DataConfig, to_dict(resolved)) == resolved
    assert all(group.rows % 2 == 0 for group in resolved.rows.values())
    needs, _ = stated_needs(config)
    groups = [(group.shape, group.rows) for group in resolved.rows.values()]
    options = {"batch_size": 4, "streams": 1, "steps": 20}
    order = SampleOrder(needs, 64)
    drawn = most_pairs(order, **options)  # not 4 in each step: one image or another has two queries
    assert 3 < drawn < 4 and simulate(order, groups, **options).pairs >= 0.95 * drawn
    assert sum(group.rows for group in resolved.rows.values()) <= 8
    assert resolve_rows(dataclasses.replace(config, data=resolved), [], None, None, shards=2) == resolved, "those stay"


def test_the_command_prints_what_a_run_would_choose(config, resolved, capsys):
    given = tiny_run.given(config.data.sources["scenes"].path, config.model.directory)
    main(["rows", *tiny_run.COMMAND, *given, "--devices", "2", "--platform", "cpu"])
    printed = capsys.readouterr().out
    assert "of 4 pairs a step" in printed
    pasted = eval("{" + printed[printed.index('"rows": {') :] + "}")
    assert from_dict(DataConfig, {"sources": {}, **pasted}).rows == resolved.rows


def test_lengths_suit_the_attention_backend():
    assert length_steps("splash", 5120) == length_steps("splash", 16) == (512, 512)
    assert length_steps("xla", 5120) == length_steps("triton", 5120) == (128, 128)
    assert length_steps("xla", 16) == (128, 4)


@pytest.mark.parametrize(("tokens", "warns"), [(89, True), (91, False)])
def test_the_command_warns_of_rows_under_nine_tenths_full(config, capsys, tokens, warns):
    group = GroupFigures(tokens, 100, 0, 0, 0, 0, most_examples=4)
    chosen = Chosen(((RowShape(100, 4), 1),), PackingFigures((group,), pairs=4.0, waiting=0.0, longest_wait=0), 1.0)
    tell(config, chosen, Console())
    warning = "row efficiency is under 0.90. Each of config.data.streams=1 streams packs 4 of the 4 pairs"
    assert (warning in capsys.readouterr().out) == warns


def test_the_command_says_what_it_lacks(fails):
    assert "usage: virtue rows" in fails("rows")
    said = fails("rows", "--config", tiny_run.COMMAND[1].replace(":point", ":recognise"))
    assert "config.model.directory is needed" in said
