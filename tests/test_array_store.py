"""Arrays in a folder: exact, in blocks, readable however they were written."""

import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from virtue_jax import array_store
from virtue_jax.array_store import LazyArray, load_arrays, read_arrays, stored_arrays, write_arrays

RNG = np.random.default_rng(0)
ARRAYS = {
    "a.kernel": RNG.standard_normal((3, 40, 50)).astype(np.float32),
    "a.bias": np.zeros(7, np.float32),  # what Zarr leaves out, being its fill value
    "half": RNG.standard_normal((5, 6)).astype(ml_dtypes.bfloat16),
    "count": np.arange(6, dtype=np.int32),
}
HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def check(folder) -> None:
    """All of `ARRAYS` is in `folder`, to the bit."""
    stored = stored_arrays(folder)
    assert {name: (x.shape, x.dtype) for name, x in stored.items()} == {
        name: (x.shape, x.dtype) for name, x in ARRAYS.items()
    }
    wanted = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=HERE) for name, x in ARRAYS.items()}
    for read in (read_arrays(folder, ARRAYS), load_arrays(folder, wanted)):
        for name, x in ARRAYS.items():
            np.testing.assert_array_equal(read[name], x, err_msg=name)


@pytest.mark.parametrize("chunk_bytes", [64, 1000, 1 << 26])
@pytest.mark.parametrize("block_bytes", [1, 3000, 1 << 25])
def test_what_is_written_is_read_to_the_bit_in_chunks_and_blocks_of_any_size(
    tmp_path, monkeypatch, chunk_bytes, block_bytes
):
    monkeypatch.setattr(array_store, "_CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(array_store, "_BLOCK_BYTES", block_bytes)
    written = []
    lazy = LazyArray((3, 40, 50), np.dtype(np.float32), lambda begin, end: ARRAYS["a.kernel"][begin:end])
    write_arrays(tmp_path, ARRAYS | {"a.kernel": lazy, "count": jax.numpy.asarray(ARRAYS["count"])}, written.append)
    assert sum(written) == sum(x.nbytes for x in ARRAYS.values())
    check(tmp_path)


def test_what_orbax_has_written_is_read_alike(tmp_path):
    """As model directories of version 1 are."""
    handler = ocp.PyTreeCheckpointHandler(use_zarr3=True)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "params", args=ocp.args.PyTreeSave(ARRAYS))
    check(tmp_path / "params")


def test_a_device_reads_its_part_in_the_dtype_it_wants(tmp_path):
    write_arrays(tmp_path, ARRAYS)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    wanted = {"a.kernel": jax.ShapeDtypeStruct((3, 40, 50), ml_dtypes.bfloat16, sharding=sharding)}
    read = load_arrays(tmp_path, wanted)["a.kernel"]
    assert (read.dtype, read.sharding) == (ml_dtypes.bfloat16, sharding)
    np.testing.assert_array_equal(read, ARRAYS["a.kernel"].astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("names", [["absent"], ["a"]])
def test_an_array_that_is_not_there_is_an_error(tmp_path, names):
    write_arrays(tmp_path, ARRAYS)
    with pytest.raises(ValueError):
        read_arrays(tmp_path, names)


@pytest.mark.slow
def test_no_more_than_a_block_waits_while_the_next_is_made(tmp_path):
    """Peak memory of a process that writes a gigabyte, of which it makes 8 MiB at a time."""
    code = f"""
import resource, sys
from pathlib import Path
import numpy as np
from virtue_jax.array_store import LazyArray, write_arrays
rng = np.random.default_rng(0)
part = rng.integers(0, 1 << 16, (1, 1 << 22), np.uint16)
x = LazyArray((128, 1 << 22), part.dtype, lambda begin, end: np.repeat(part, end - begin, 0))
write_arrays(Path({str(tmp_path / "small")!r}), {{"x": LazyArray((2, 1 << 22), part.dtype, x.read)}})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_arrays(Path({str(tmp_path / "large")!r}), {{"x": x}})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ended.stdout) < 200 << 10  # KiB; blocks, and what the threads of tensorstore encode


def test_a_failure_is_told_and_nothing_is_written_after_it(tmp_path):
    def fail(begin: int, end: int) -> np.ndarray:
        raise ValueError("this array is bad")

    with pytest.raises(ValueError, match="this array is bad"):
        write_arrays(tmp_path / "a", ARRAYS | {"bad": LazyArray((3, 4), np.dtype(np.float32), fail)})
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write: is the disk full"):
        write_arrays(tmp_path / "file", ARRAYS)
