"""Conversion holds about one tensor at a time, whatever the size of the checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from synthetic import qwen_config, qwen_shapes, random_bfloat16, write_sharded

from converters.sources import open_file, open_folder
from virtue_jax.model_directory import read_parameters

ROOT = Path(__file__).parents[2]
MEASURE = """
import re, sys
from pathlib import Path
from converters.__main__ import main
code = main(sys.argv[1:])
print(int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)
sys.exit(code)
"""


def peak_bytes(*argv) -> int:
    """Peak resident bytes of a conversion, mapped pages included.

    Not `ru_maxrss`: that of a child process starts at what its parent held when it forked.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", MEASURE, *map(str, argv)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def as_bin(files: list[Path]) -> list[Path]:
    """The same shards as PyTorch files; the safetensors ones are removed."""
    from safetensors.torch import load_file

    written = []
    for i, file in enumerate(files, 1):
        written.append(file.with_name(f"pytorch_model-{i:05d}-of-{len(files):05d}.bin"))
        torch.save(load_file(file), written[-1])
        file.unlink()
    index = files[0].parent / "model.safetensors.index.json"
    text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
    index.with_name("pytorch_model.bin.index.json").write_text(text)
    index.unlink()
    return written


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "dtype", "itemsize"), [("safetensors", "keep", 2), ("bin", "float32", 4)])
def test_the_peak_is_within_one_and_a_half_shards_and_one_tensor(tiny, tmp_path, suffix, dtype, itemsize):
    config = qwen_config(hidden=1536, intermediate=8960, layers=11, vocabulary=50_000)
    files = write_sharded(tmp_path / "vlm", config, shards=2)
    if suffix == "bin":
        files = as_bin(files)
    largest_shard = max(file.stat().st_size for file in files)
    largest_tensor = 11 * 8960 * 1536 * itemsize  # a stacked MLP kernel, as written
    bound = 1.5 * largest_shard + largest_tensor
    sam2 = tiny / "sam2_tiny.pt"
    out = tmp_path / "model"
    peak = peak_bytes("import", "--vlm", tmp_path / "vlm", "--sam2", sam2, "--out", out, "--dtype", dtype)
    print(f"import {suffix} {dtype}: peak {peak / 1e6:.0f} MB, bound {bound / 1e6:.0f} MB")
    assert largest_shard > 500e6
    assert peak < bound
    path = "text.layers.mlp.down_proj.kernel"
    kernel = read_parameters(out, [path])[path][7]
    source = open_folder(tmp_path / "vlm").read("model.layers.7.mlp.down_proj.weight")
    np.testing.assert_array_equal(kernel, source.T.astype(kernel.dtype))
    del kernel, source
    peak = peak_bytes("export", "--model", out, "--out", tmp_path / "exported")
    exported = (tmp_path / "exported/vlm/model.safetensors").stat().st_size
    print(f"export {dtype}: peak {peak / 1e6:.0f} MB for a file of {exported / 1e6:.0f} MB")
    assert peak < 1.5 * exported + largest_tensor


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_file_is_unmapped_after_a_few_hundred_megabytes(tmp_path, monkeypatch, name):
    monkeypatch.setattr("converters.mapped_file._REMAP_AFTER", 1000)
    tensors = {f"t{i}": torch.randn(100) for i in range(6)}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.pt")
    file = open_file(tmp_path / name)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(file.read(name), tensor.numpy())
        assert file._touched <= 1000


def test_only_one_file_stays_open(tmp_path):
    config = qwen_config(hidden=48, intermediate=32, layers=3, vocabulary=64)
    files = as_bin(write_sharded(tmp_path / "vlm", config, shards=3))
    source = open_folder(tmp_path / "vlm")
    shapes = qwen_shapes(config)
    assert len(files) == 3
    for name in [*list(shapes)[::7], "model.norm.weight", "visual.patch_embed.proj.weight"]:
        assert source.read(name).shape == shapes[name]
        assert sum(file.is_open for file in source.files) == 1


def test_synthetic_weights_are_finite_and_varied():
    values = random_bfloat16((1000,), 0).astype(np.float32)
    assert np.isfinite(values).all()
    assert len(np.unique(values)) > 500
