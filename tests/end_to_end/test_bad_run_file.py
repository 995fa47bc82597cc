"""What a person reads when a run file or a value set on the command line is wrong: one line, and nothing is trained."""

import re
import sys

import pytest
import tiny_run

TYPOS = {
    "--config.stepz=3": r"unknown keys \['stepz'\].*known: .*'steps'",
    "--config.data.sources.scenes.pathh=3": r"sources.scenes .*unknown keys \['pathh'\].*known: .*'path'",
    "--config.steps=abc": "--config.steps=abc: invalid literal",
    "--config.steps=0": "{'steps': 0}: expected whole numbers of at least 1",
    "--config.log_every=0": "{'log_every': 0}: expected whole numbers",
    "--config.loss.temperature=0.0": "loss.temperature: 0.0: expected a number above 0",
    "--config.numerics.compute=float31": "numerics.compute: 'float31' is not one of float32, bfloat16",
    "--config.checkpoints.keep=3": "--config.checkpoints.keep=3: the run file has no section 'checkpoints'",
    "--config.numerics={'compute':'float31'}": "numerics.compute: 'float31' is not one of float32, bfloat16",
    "--config.numerics={'attention':'splash'}": "'splash' does not run on 'cpu': set numerics.attention to one of",
    "--config.data.sources.scenes.path=nowhere": "nowhere: no such file",
    "--config.data.sources.scenes.kind=csv": "kind 'csv' is not one of scar, mmeb, jsonl",
    "--config.optimizer.warmup_steps=8": "warmup_steps 8 must be fewer than the 8 training steps",
    "--config.optimizer.decay=cosin": "decay 'cosin' is not one of linear, cosine, constant",
    "--config.data.rows.images.micro_batches=3": "images: 4 rows, 3 micro-batches.*must divide.*resumed.* use a mesh",
    "--config.data.streams=3": "4 rows of .*: expected a multiple of 3 streams",
    "--config.model.directory=nowhere": "nowhere is not a model directory .*make one: python -m converters",
    "--config.model.adapter={'rank':4,'targets':('q_prj',)}": "q_prj",
    "stray": "not understood: stray",
}


@pytest.mark.parametrize("typo", TYPOS)
def test_train_tells_what_is_wrong_with_the_configuration(fails, scenes, tiny_virtue, tmp_path, typo):
    rest = [option for option in tiny_run.given(scenes, tiny_virtue) if option.split("=")[0] != typo.split("=")[0]]
    said = fails("train", *tiny_run.COMMAND, "--workdir", tmp_path / "work", *rest, typo)
    assert re.search(TYPOS[typo], said), said
    assert not (tmp_path / "work/model").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "run.py.*No such file"),
        ("def get_config(:", "SyntaxError: .*run.py, line 1"),
        ("x = 1", "no attribute 'get_config'"),
        ("import absent_module", "No module named 'absent_module'"),
    ],
)
def test_train_tells_what_is_wrong_with_the_run_file(fails, tmp_path, monkeypatch, text, message):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # the last run file, as ml_collections keeps it
    if text is not None:
        (tmp_path / "run.py").write_text(text)
    said = fails("train", "--config", tmp_path / "run.py", "--workdir", tmp_path / "work")
    assert re.search(message, said), said


def test_a_workdir_that_is_not_a_folder_is_refused(fails):
    said = fails("train", *tiny_run.COMMAND, "--workdir", "gs://bucket/run")
    assert said == "--workdir gs://bucket/run: expected a folder; a bucket has to be mounted as one first"


def test_a_pattern_that_matches_nothing_lists_what_exists(fails, scenes, tiny_virtue, tmp_path):
    said = fails(
        "train",
        *tiny_run.COMMAND,
        "--workdir",
        tmp_path,
        *tiny_run.given(scenes, tiny_virtue),
        "--config.trainable=text.*lora_a",
    )
    assert "pattern 'text.*lora_a' matches no parameter; the parameters are:" in said
    assert "\n  text.layers.self_attn.q_proj.kernel\n" in said
