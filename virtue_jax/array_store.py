"""Named arrays in one folder: written block by block, so that an array need not be in memory to be stored; read into
any dtype and sharding.

The folder is an OCDBT database of tensorstore with a Zarr (version 3) array under each name. Orbax writes the same,
with files of its own beside: what it has written is read alike.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tensorstore as ts

_BLOCK_BYTES = 1 << 25
_CHUNK_BYTES = 1 << 26  # largest chunk on disk: what is read at least when a slice of an array is wanted
_METADATA = "/zarr.json"
_READERS = 4  # arrays that are read at a time


@dataclass(frozen=True)
class LazyArray:
    """An array of `shape` and `dtype` that `read(begin, end)` makes, rows along the first axis at a time.

    step: rows that cost no more to make alone than together (1 for stacked layers); `shape[0]` = only all at once.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray]
    step: int = 1

    @classmethod
    def of(cls, array: np.ndarray | jax.Array) -> "LazyArray":
        """An array that is there already; written as a whole."""
        return cls(array.shape, array.dtype, lambda begin, end: np.asarray(array)[begin:end], max(array.shape[0], 1))

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def write_arrays(
    folder: Path,
    arrays: Mapping[str, LazyArray | np.ndarray | jax.Array],
    progress: Callable[[int], None] = lambda written: None,
) -> None:
    """Makes a folder of `arrays`. Beside what is made in a step, blocks of 32 MiB in all wait to be written.

    progress: called with the number of bytes handed over since the last call.

    Raises:
        OSError: the folder cannot be written. Whatever `read` of a `LazyArray` raises.
    """
    lazy = {name: x if isinstance(x, LazyArray) else LazyArray.of(x) for name, x in arrays.items()}
    context = ts.Context({"file_io_sync": False})  # whoever needs the files to survive the machine syncs them once
    waiting: deque[tuple[ts.WriteFutures, int]] = deque()
    try:
        opened = {name: ts.open(_new(folder, name, x), create=True, context=context) for name, x in lazy.items()}
        stores = {name: _written(store) for name, store in opened.items()}
        for name, x in lazy.items():
            rows = _rows_per_block(x)
            for begin in range(0, x.shape[0], rows):
                block = x.read(begin, min(begin + rows, x.shape[0]))
                while waiting and sum(size for _, size in waiting) + block.nbytes > _BLOCK_BYTES:
                    _written(waiting.popleft()[0])
                target = stores[name][begin : begin + len(block)]
                waiting.append((target.write(block, can_reference_source_data_indefinitely=True), block.nbytes))
                progress(block.nbytes)
                del block
        while waiting:
            _written(waiting.popleft()[0])
    finally:
        for future, _ in waiting:  # after a failure: nothing is written to the folder any more when this returns
            future.exception()


def stored_arrays(folder: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """{name: shape and dtype} of all arrays in `folder`.

    Raises:
        ValueError: the folder cannot be read, or holds none.
    """
    keys = [key.decode() for key in ts.KvStore.open(_database(folder)).result().list().result()]
    if not keys:
        raise ValueError("there is no array in it")
    stores = _open(folder, [key.removesuffix(_METADATA) for key in keys if key.endswith(_METADATA)])
    return {name: jax.ShapeDtypeStruct(store.shape, store.dtype.numpy_dtype) for name, store in stores.items()}


def read_arrays(folder: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Some arrays as stored.

    Raises:
        ValueError: the folder cannot be read, or has no such array.
    """
    return {name: store.read().result() for name, store in _open(folder, names).items()}


def load_arrays(folder: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Some arrays, each in the dtype and sharding that `wanted` gives it; a device's part is read and nothing else.

    Raises:
        ValueError: the folder cannot be read, or has no such array.
    """
    stores = _open(folder, wanted)
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(wanted, pool.map(_load, stores.values(), wanted.values()), strict=True))


def _load(store: ts.TensorStore, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    cast, parts = ts.cast(store, wanted.dtype), {}

    def read(index: tuple[slice, ...]) -> np.ndarray:
        key = tuple((part.start, part.stop) for part in index)
        if key not in parts:  # several devices may hold the same part
            parts[key] = cast[index].read().result()
        return parts[key]

    return jax.make_array_from_callback(tuple(wanted.shape), wanted.sharding, read)


def _database(folder: Path, path: str = "") -> dict:
    return {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder.absolute()}/"}, "path": path}


def _open(folder: Path, names: Iterable[str]) -> dict[str, ts.TensorStore]:
    opened = {name: ts.open({"driver": "zarr3", "kvstore": _database(folder, f"{name}/")}, open=True) for name in names}
    return {name: store.result() for name, store in opened.items()}


def _new(folder: Path, name: str, array: LazyArray) -> dict:
    codecs = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "zstd", "configuration": {"level": 3}},
    ]
    grid = {"name": "regular", "configuration": {"chunk_shape": _chunk(array)}}
    metadata = {"shape": array.shape, "data_type": np.dtype(array.dtype).name, "chunk_grid": grid, "codecs": codecs}
    return {"driver": "zarr3", "kvstore": _database(folder, f"{name}/"), "metadata": metadata}


def _chunk(array: LazyArray) -> list[int]:
    """Of about `_CHUNK_BYTES` at most, cut along the leading axes; it does not span layers that are made one by one."""
    chunk = [1 if array.step == 1 else array.shape[0], *array.shape[1:]]
    for axis in range(len(chunk)):
        while math.prod(chunk) * np.dtype(array.dtype).itemsize > _CHUNK_BYTES and chunk[axis] > 1:
            chunk[axis] = -(-chunk[axis] // 2)
    return chunk


def _rows_per_block(array: LazyArray) -> int:
    """A multiple of what can be read and what can be written without touching a chunk twice, of about one block."""
    least = math.lcm(array.step, _chunk(array)[0])
    row_bytes = max(array.nbytes // array.shape[0], 1)
    return least * max(_BLOCK_BYTES // (least * row_bytes), 1)


def _written(future):
    try:
        return future.result()
    except ValueError as error:  # what tensorstore raises, whatever the operating system said
        raise OSError(f"cannot write: is the disk full? ({str(error).splitlines()[0]})") from error
