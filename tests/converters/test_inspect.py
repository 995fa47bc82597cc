"""`inspect` says what a checkpoint is, whatever its format."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from converters.__main__ import main
from converters.errors import CheckpointError
from converters.exporting import ExportRequest
from converters.exporting import run as export
from converters.inspecting import inspect
from virtue_jax.exit_status import REFUSED


@pytest.mark.parametrize(
    ("name", "kind", "tensors", "geometry"),
    [
        ("vlm", "Qwen2-VL (Hugging Face folder)", 69, {"vision", "text"}),
        ("virtue_hf", "merged VIRTUE", 70, {"vision", "text", "virtue_sam"}),
        ("adapter", "PEFT adapter", 45, {"adapter", "target_modules in its config"}),
        ("train_checkpoint", "PEFT adapter", 45, {"adapter", "target_modules in its config"}),
        ("sam2_tiny.pt", "SAM-2 state dict", 336, {"sam2"}),
        ("sam2_reducer_and_vlm_layer.pth", "connector", 6, set()),
        ("vlm/model.safetensors", "weights of a Qwen2-VL", 69, set()),
        ("train_checkpoint/adapter_model.bin", "weights of a PEFT adapter", 45, set()),
    ],
)
def test_each_format_is_recognised(tiny, name, kind, tensors, geometry):
    finding = inspect(tiny / name)[0]
    assert kind in finding.kind
    assert len(finding.infos) == tensors
    assert set(finding.geometry) == geometry
    assert finding.notes == ()


def test_a_training_checkpoint_shows_its_connector_too(tiny):
    kinds = [finding.kind for finding in inspect(tiny / "train_checkpoint")]
    assert len(kinds) == 2
    assert "connector" in kinds[1]


def test_a_model_directory_and_its_export_are_told_in_full(tiny_model_dir, tmp_path):
    (finding,) = inspect(tiny_model_dir(adapter=True))
    assert len(finding.infos) == 256
    assert finding.geometry["text"].hidden_size == 64
    export(ExportRequest(model=tiny_model_dir(adapter=True), out=tmp_path / "out"))
    kinds = " | ".join(finding.kind for finding in inspect(tmp_path / "out"))
    for word in ("SAM-2", "connector", "Qwen2-VL", "PEFT"):
        assert word in kinds


def test_the_command_prints_geometry_counts_and_dtypes(tiny, capsys):
    assert main(["inspect", str(tiny / "vlm")]) == 0
    printed = capsys.readouterr().out
    assert "264,832 values" in printed
    assert "float32: 69 tensors" in printed
    assert "hidden_size=64" in printed
    assert "model.layers.*.self_attn.q_proj.weight" in printed
    assert "[64, 64]" in printed


def test_an_unknown_sam2_size_is_told_with_the_remedy(tiny, tmp_path):
    moved = tmp_path / "moved.pt"
    moved.write_bytes((tiny / "sam2_tiny.pt").read_bytes())
    (finding,) = inspect(moved)
    assert finding.geometry == {}
    assert "--sam2-config" in finding.notes[0]


def test_what_is_no_checkpoint_is_said(tmp_path, capsys):
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    assert inspect(tmp_path / "x.safetensors")[0].kind == "tensors of a kind not known here"
    (tmp_path / "notes.txt").write_text("hello")
    for path in (tmp_path / "notes.txt", tmp_path / "absent", tmp_path):
        with pytest.raises(CheckpointError, match=str(path.name)):
            inspect(path)
    assert main(["inspect", str(tmp_path / "absent")]) == REFUSED
    assert "no such file or directory" in capsys.readouterr().err
