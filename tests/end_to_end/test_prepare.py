"""`virtue prepare` writes a run's sources once; the run then draws the same examples from them."""

import json

import numpy as np
import pytest
import tiny_run

from virtue_jax.cli.main import main
from virtue_jax.config import from_dict
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.sources.open_data import make_loader, open_sources
from virtue_jax.model_directory import load_config
from virtue_jax.train.step.config import TrainConfig


@pytest.fixture(scope="module")
def out(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepare") / "out"
    main(["prepare", *tiny_run.COMMAND, *tiny_run.given(scenes, "nowhere"), "--out", str(out)])
    return out


def run_config(**source) -> TrainConfig:
    values = tiny_run.get_config("point").to_dict()
    values["data"]["sources"]["scenes"].update(source)
    return from_dict(TrainConfig, values)


def test_a_run_packs_the_same_rows_from_the_prepared_set(scenes, out, tiny_virtue):
    virtue = load_config(tiny_virtue)
    tokenizer, steps = Tokenizer.load(tiny_virtue), []
    for source in ({"path": str(scenes)}, {"path": str(out / "scenes"), "kind": "prepared"}):
        config = run_config(**source)
        loader = make_loader(
            config.data,
            open_sources(config.data, config.seed),
            virtue,
            tokenizer,
            batch_size=config.batch_size,
            seed=config.seed,
        )
        steps.append([next(loader) for _ in range(3)])
        loader.close()
    for ours, theirs in zip(*steps, strict=True):
        assert ours.report.origins == theirs.report.origins and ours.report.pairs == theirs.report.pairs
        for one, other in zip(ours.groups, theirs.groups, strict=True):
            for name, a, b in zip(one._fields, one, other, strict=True):
                np.testing.assert_array_equal(a, b, err_msg=name)


def test_the_command_tells_how_to_train_on_it(scenes, out, tmp_path, capsys, fails):
    command = [*tiny_run.COMMAND, *tiny_run.given(scenes, "nowhere"), "--out"]
    main(["prepare", *command, str(tmp_path / "again")])
    printed = capsys.readouterr().out
    assert (
        f"--config.data.sources.scenes.kind=prepared --config.data.sources.scenes.path={tmp_path}/again/scenes"
        in printed
    )
    assert "--overwrite" in fails("prepare", *command, out)
    main(["prepare", *command, str(out), "--overwrite"])
    told = fails("prepare", *tiny_run.COMMAND)
    assert told.startswith("the following arguments are required: --out\nusage: virtue prepare --config")


def test_a_failed_preparation_leaves_nothing(scenes, tmp_path, fails):
    lines = [{"query": {"image": f"{i}.png"}, "positive": {"text": "p"}} for i in range(20)]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = f"--config.data.sources.scenes.path={tmp_path}/bad.jsonl", "--config.data.sources.scenes.kind=jsonl"
    said = fails("prepare", *tiny_run.COMMAND, *given, "--out", tmp_path / "out")
    assert said.startswith("source 'scenes': 10 of the first 10 pairs cannot be read") and "9.png" in said
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_a_limit_does_not_cut_groups(out):
    (grouped,) = open_sources(run_config(path=str(out / "scenes"), kind="prepared").data, 0)
    assert grouped.pairs > len(grouped)
    (whole,) = open_sources(run_config(path=str(out / "scenes"), kind="prepared", limit=grouped.pairs).data, 0)
    assert len(whole) == len(grouped)
    with pytest.raises(ValueError, match=r"limit 3 counts rows, .* give the limit to `virtue prepare`"):
        open_sources(run_config(path=str(out / "scenes"), kind="prepared", limit=3).data, 0)
