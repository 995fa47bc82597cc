"""Whether a checkpoint's files can be read, found out by every process for itself, without waiting for another."""

import json
from pathlib import Path

import tensorstore

_PART_BYTES = 1 << 28
_METADATA = {".zarray": "zarr", "zarr.json": "zarr3"}


def read_json(path: Path) -> dict:
    """A file's JSON object. Raises OSError, ValueError: not there, or not a JSON object."""
    record = json.loads(path.read_text())
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds no JSON object")
    return record


def read_share(folder: Path, process: int, processes: int) -> list[str]:
    """Reads and decodes this process's share of the arrays in `folder` (Orbax with OCDBT), and drops the values.

    With all processes together every array is read once; about 256 MiB of one are held at a time.

    Returns:
        The arrays' names.

    Raises:
        ValueError, OSError: no arrays, or something that cannot be read.
    """
    base = {"driver": "file", "path": f"{folder}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    keys = sorted(key.decode().rpartition("/") for key in store.list().result())
    arrays = [(name, _METADATA[last]) for name, _, last in keys if last in _METADATA]
    if not arrays:
        raise ValueError(f"{folder} holds no arrays")
    for name, driver in arrays[process::processes]:
        kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        _read(tensorstore.open({"driver": driver, "kvstore": kvstore}, read=True, open=True).result())
    return [name for name, _ in arrays[process::processes]]


def _read(array: tensorstore.TensorStore) -> None:
    if not array.rank:
        array.read().result()
        return
    rows, size = array.shape[0], max(array.size * array.dtype.numpy_dtype.itemsize, 1)
    step = max(1, _PART_BYTES * rows // size)
    for begin in range(0, rows, step):
        array[begin : min(begin + step, rows)].read().result()
