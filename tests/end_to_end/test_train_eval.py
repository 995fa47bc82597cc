"""Whole commands one after the other: train, kill, resume, evaluate, embed, export, import."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_run
from PIL import Image

from converters.__main__ import main as convert
from virtue_jax.cli.main import main
from virtue_jax.config import Numerics
from virtue_jax.data.formats.scar import ScarEvaluation
from virtue_jax.embedding.embedder import Embedder
from virtue_jax.eval.tasks.scar import Scar
from virtue_jax.model_directory import load_config, load_model
from virtue_jax.models.parameters import parameters

pytestmark = pytest.mark.slow

STEPS, KILLED_AT = 8, 7  # checkpoints every 2 steps: that of step 4 is whole by then, that of step 6 perhaps


def command(scenes: Path, workdir: Path, *options: str) -> list[str]:
    config = ["--config", tiny_run.__file__, f"--config.data.sources.scenes.path={scenes}"]
    return ["train", *config, "--workdir", str(workdir), *options]


def losses(workdir: Path) -> dict[int, float]:
    """{step: loss}; a step that is there twice is an error."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len({record["step"] for record in records}) == len(records)
    return {record["step"]: record["loss"] for record in records}


def arrays_of(model: Path) -> dict[str, np.ndarray]:
    return jax.tree.map(np.asarray, parameters(load_model(model, Numerics())[1]))


def assert_bit_identical(one: Path, other: Path) -> None:
    one, other = arrays_of(one), arrays_of(other)
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory) -> Path:
    """The work directory of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("trained")
    main(command(scenes, workdir))
    return workdir


def test_a_run_leaves_metrics_checkpoints_and_a_model(trained):
    assert list(losses(trained)) == list(range(1, STEPS + 1))
    assert np.isfinite(list(losses(trained).values())).all()
    assert sorted(p.name for p in (trained / "checkpoints").iterdir() if p.is_dir()) == ["step_6", "step_8"]
    assert list((trained / "tensorboard").iterdir())
    assert (trained / "model/virtue_config.json").is_file()


KILL = f"""
import os, signal, sys
from virtue_jax.train.reporting.metrics import MetricsLog

advance = MetricsLog.advance

def advance_or_die(self, step):
    advance(self, step)
    if step == {KILLED_AT}:
        os.kill(os.getpid(), signal.SIGKILL)

MetricsLog.advance = advance_or_die
from virtue_jax.cli.main import main
main(sys.argv[1:])
"""


def test_a_killed_run_resumes_to_the_same_bits(trained, scenes, tmp_path, capsys):
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(Path(__file__).parent)])}
    killed = subprocess.run(
        [sys.executable, "-c", KILL, *command(scenes, tmp_path)], cwd=root, env=environment, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert not (tmp_path / "model").exists()
    main(command(scenes, tmp_path))
    printed = capsys.readouterr().out
    assert "resumed at step 4 from" in printed or "resumed at step 6 from" in printed
    assert losses(tmp_path) == losses(trained)
    assert_bit_identical(tmp_path / "model", trained / "model")


def test_a_finished_run_is_left_as_it_is_and_another_configuration_is_refused(trained, scenes, capsys):
    before = arrays_of(trained / "model")
    main(command(scenes, trained))
    assert "resumed at step 8 from" in capsys.readouterr().out
    assert list(losses(trained)) == list(range(1, STEPS + 1))
    with pytest.raises(SystemExit):
        main(command(scenes, trained, "--config.optimizer.learning_rate=0.5"))
    said = capsys.readouterr().err
    assert "optimizer.learning_rate: 0.001 there, 0.5 here" in said
    assert "use another workdir or the same configuration" in said
    after = arrays_of(trained / "model")
    assert all((before[path] == after[path]).all() for path in before)


def test_eval_writes_table_report_and_plot(trained, scenes, tmp_path, capsys):
    main(
        ["eval", "--model", str(trained / "model"), "--task", "scar", "--data", str(scenes), "--workdir", str(tmp_path)]
    )
    printed = capsys.readouterr().out
    assert "true prompt" in printed and str(tmp_path / "scar.png") in printed
    report = json.loads((tmp_path / "scar.json").read_text())
    assert list(report["results"]) == list(Scar.MODES)
    for mode in Scar.MODES:
        result = report["results"][mode]
        assert result["questions"] == len(ScarEvaluation(scenes))
        assert 0 <= result["hit@1"] <= 1
        assert set(result["types"]) == {"global_context", "background_relation", "object_swap"}
    assert Image.open(tmp_path / "scar.png").format == "PNG"


def test_what_embed_writes_is_what_python_gives(trained, scenes, tmp_path):
    queries = [ScarEvaluation(scenes)[row].query for row in range(5)]
    lines = [{"image": q.images[0], "text": q.text, "box": list(q.prompt.box)} for q in queries] + [{"text": "a fish"}]
    (tmp_path / "input.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out.npz"
    main(["embed", "--model", str(trained / "model"), "--input", str(tmp_path / "input.jsonl"), "--out", str(out)])
    written = np.load(out)["embedding"]
    embedder = Embedder.load(trained / "model")
    np.testing.assert_allclose(written[:5], embedder.embed(queries), atol=1e-6)
    np.testing.assert_allclose(written, embedder.embed(lines), atol=1e-6)
    assert len(np.unique(written.round(4), axis=0)) == len(lines)  # every line has a vector of its own


@pytest.fixture(scope="module")
def imported(trained, tmp_path_factory):
    """`imported(*options)`: the trained model, exported and imported again."""
    out = tmp_path_factory.mktemp("exported") / "out"
    assert convert(["export", "--model", str(trained / "model"), "--out", str(out)]) == 0

    def again(*options: str) -> Path:
        model = tmp_path_factory.mktemp("imported") / "model"
        parts = {
            "vlm": "vlm",
            "sam2": "sam2.pt",
            "sam2-config": "sam2.yaml",
            "connector": "sam2_reducer_and_vlm_layer.pth",
        }
        given = [word for name, file in parts.items() for word in (f"--{name}", str(out / file))]
        assert convert(["import", *given, "--out", str(model), *options]) == 0
        return model

    return again


def test_export_and_import_of_a_trained_model_is_bit_identical(trained, imported):
    model = imported("--compat", "paper")
    assert_bit_identical(model, trained / "model")
    one, other = load_config(model), load_config(trained / "model")
    assert (one.sam2, one.vision, one.text) == (other.sam2, other.vision, other.text)


def test_a_bfloat16_model_embeds_close_to_the_float32_one(trained, scenes, imported):
    examples = [ScarEvaluation(scenes)[row].query for row in range(3)]
    model = imported("--compat", "paper", "--dtype", "bfloat16")
    exact = Embedder.load(imported("--compat", "paper")).embed(examples)
    for dtype in ("bfloat16", "float32"):
        rounded = Embedder.load(model, dtype=dtype).embed(examples)
        assert (exact * rounded).sum(-1).min() > 0.995
