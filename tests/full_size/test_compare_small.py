"""The full-size comparison at the tiny size: every stage as a process of its own, and a verdict that can be no."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from full_size.compare import FOLDER, STAGES, agrees, difference, measured_process
from full_size.make_checkpoints import listing, random_tensors, write_tokenizer

from virtue_jax.data.encoding.tokens import Tokenizer

TESTS = Path(__file__).parents[1]
PATHS = os.pathsep.join([str(TESTS.parent), str(TESTS)])
PROCESSES = {
    "make checkpoints",
    "import --dtype bfloat16",
    "import --dtype keep",
    "inputs",
    "jax bfloat16",
    "jax float32",
    "torch float32",
    "7b, shapes only",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(the workdir of a finished run, its output)."""
    workdir = tmp_path_factory.mktemp("compare")
    command = [sys.executable, "-m", "full_size.compare", "--workdir", workdir, "--size", "tiny", "--clean"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": PATHS}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return workdir, done.stdout


@pytest.fixture(scope="module")
def report(finished) -> dict:
    return json.loads((finished[0] / "full_size_report.json").read_text())


@pytest.mark.slow
@pytest.mark.parity
def test_every_stage_agrees_with_pytorch(report):
    found = report["float32_against_torch"]
    assert set(found) == set(STAGES)
    # Ten times what other float32 kernels move the tiny golden model.
    assert max(x["relative"] for x in found.values()) < 2e-5
    assert report["positions_identical"]
    assert 0.99 < report["cosine_of_bfloat16_and_float32"] < 1


@pytest.mark.slow
@pytest.mark.parity
def test_seconds_and_memory_are_told_and_nothing_else_is_left(finished, report):
    workdir, output = finished
    assert set(report["processes"]) == PROCESSES
    assert all(x["wall_s"] > 0 and x["cpu_s"] > 0 and x["peak_gib"] > 0.05 for x in report["processes"].values())
    assert report["inside"]["jax_bfloat16"]["compile_s"] > 0
    # Qwen2-VL-7B has 8.29e9 parameters, 0.545e9 of them the `lm_head` that an embedder leaves out; SAM-2.1 b+ and the
    # connector add 0.074e9.
    assert 7.81e9 < report["inside"]["shapes"]["parameters"] < 7.83e9
    assert "jax bfloat16" in output and "agrees" in output
    assert [path.name for path in workdir.iterdir()] == ["full_size_report.json"]
    assert not (workdir / FOLDER).exists()


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        (("float32_against_torch", "embedding"), "relative", 2e-4),
        (("float32_against_torch", "embedding"), "cosine", 0.99999),
        (("float32_against_torch", "embedding"), "cosine", float("nan")),
        ((), "positions_identical", False),
        ((), "cosine_with_another_prompt", 1.0),
    ],
)
def test_one_wrong_figure_changes_the_verdict(report, where, key, value):
    wrong = copy.deepcopy(report)
    node = wrong
    for step in where:
        node = node[step]
    node[key] = value
    assert agrees(report) and not agrees(wrong)


def test_a_difference_is_relative_to_the_largest_value():
    found = difference(np.array([1.0, -4.0], np.float32), np.array([[1.0, -4.2]], np.float32))
    assert found["max_abs"] == pytest.approx(0.2, rel=1e-5)
    assert found["relative"] == pytest.approx(0.2 / 4.2, rel=1e-5)
    assert 0.999 < found["cosine"] < 1


def test_a_failing_stage_ends_the_run_with_its_last_lines(tmp_path):
    with pytest.raises(SystemExit, match="no-such-module"):
        measured_process(["no-such-module"], tmp_path / "log.txt")


def test_peak_memory_is_that_of_the_process_alone(tmp_path):
    (tmp_path / "allocate.py").write_text("import sys; x = b'x' * (int(sys.argv[1]) << 20)")
    # From a process of its own: a child's peak begins with what its parent holds.
    code = (
        "from pathlib import Path; from full_size.compare import measured_process\n"
        "for size in ('300', '1'): print(measured_process(['allocate', size], Path('log.txt'))['peak_gib'])"
    )
    environment = os.environ | {"PYTHONPATH": PATHS}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    large, small = map(float, done.stdout.split())
    assert 0.29 < large < 0.45
    assert small < 0.15


def test_the_2b_listing_gets_special_tokens_where_its_config_has_them(tmp_path):
    config = listing("2b").vlm_config
    write_tokenizer(tmp_path, config)
    tokenizer = Tokenizer.load(tmp_path)
    assert len(tokenizer.tokenizer) == 151_657
    ids = tokenizer.ids("<|vision_start|><|image_pad|><|vision_end|>a red star")
    assert ids[:3] == [config["vision_start_token_id"], config["image_token_id"], config["vision_end_token_id"]]
    assert max(ids[3:]) < 1000


def test_weights_have_the_scale_that_their_place_needs():
    shapes = {
        "model.layers.0.mlp.gate_proj.weight": (200, 800),
        "model.layers.0.mlp.down_proj.weight": (200, 800),
        "model.layers.7.input_layernorm.weight": (4000,),
        "model.layers.7.self_attn.q_proj.bias": (4000,),
        "model.embed_tokens.weight": (300, 30),
        "sam_mask_decoder.transformer.layers.0.cross_attn_image_to_token.v_proj.weight": (300, 100),
    }
    scales = {name.split(".", 2)[-1]: (x.mean(), x.std()) for name, x in random_tensors(shapes, seed=1)}
    expected = {
        "0.mlp.gate_proj.weight": (0, 800**-0.5),
        "0.mlp.down_proj.weight": (0, (800 * 2 * 2) ** -0.5),
        "7.input_layernorm.weight": (1, 0.1),
        "7.self_attn.q_proj.bias": (0, 0.1),
        "weight": (0, 1),
        "layers.0.cross_attn_image_to_token.v_proj.weight": (0, 0.1),
    }
    assert set(scales) == set(expected)
    for name, (mean, deviation) in expected.items():
        np.testing.assert_allclose(scales[name], (mean, deviation), rtol=0.05, atol=0.1 * deviation, err_msg=name)
