"""The safetensors format, read and written tensor by tensor.

The `safetensors` package maps files into memory, and mapped pages count as resident; a plain read of one tensor at a
time keeps the peak at one tensor, and the header checks done here name what is wrong with a damaged file.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from converters.errors import CheckpointError

_HEADER_LIMIT = 100_000_000  # as in the reference implementation

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """What a file says of one tensor before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class SafetensorsFile:
    """One `.safetensors` file: `infos` {name: TensorInfo}, and `read(name)`.

    Raises:
        CheckpointError: a file that is empty, truncated, has a damaged header, or whose header and length disagree.
    """

    def __init__(self, path: Path):
        self.path = path
        header, self._data_start = _read_header(path)
        self.metadata = header.pop("__metadata__", {})
        self.infos: dict[str, TensorInfo] = {}
        self._offsets: dict[str, int] = {}
        problems = []
        for name, entry in header.items():
            try:
                self._add(name, entry)
            except (KeyError, TypeError, ValueError) as error:
                problems.append(f"{path}: tensor {name}: damaged header entry {entry!r} ({error})")
        end = max((self._offsets[n] + info.nbytes for n, info in self.infos.items()), default=0)
        have = path.stat().st_size - self._data_start
        if not problems and have != end:
            kind = "truncated" if have < end else "longer than its header says"
            problems.append(f"{path}: {kind}: {have} bytes of tensor data, the header lists {end}")
        if problems:
            raise CheckpointError(problems)

    def _add(self, name: str, entry: dict) -> None:
        begin, end = entry["data_offsets"]
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"dtype {entry['dtype']} is not one of {', '.join(_DTYPES)}")
        info = TensorInfo(tuple(entry["shape"]), _DTYPES[entry["dtype"]], self.path)
        if end - begin != info.nbytes:
            raise ValueError(f"{end - begin} bytes do not hold shape {info.shape} of {info.dtype}")
        self.infos[name] = info
        self._offsets[name] = begin

    def read(self, name: str) -> np.ndarray:
        """A copy of the tensor, in its own dtype."""
        info = self.infos[name]
        with open(self.path, "rb") as file:
            file.seek(self._data_start + self._offsets[name])
            raw = np.fromfile(file, dtype=np.uint8, count=info.nbytes)
        if raw.size != info.nbytes:
            raise CheckpointError([f"{self.path}: tensor {name}: the file ended early while reading"])
        return raw.view(info.dtype).reshape(info.shape)


def _read_header(path: Path) -> tuple[dict, int]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise CheckpointError([f"{path}: truncated or not safetensors: {size} bytes, header of {length} announced"])
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise CheckpointError([f"{path}: not safetensors: its header is not JSON ({error})"]) from error
    if not isinstance(header, dict):
        raise CheckpointError([f"{path}: not safetensors: its header is not a JSON object"])
    return header, 8 + length


def write_safetensors(
    path: Path, infos: Mapping[str, tuple[tuple[int, ...], np.dtype]], tensors: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Writes one file, holding one tensor at a time.

    Args:
        infos: {name: (shape, dtype)} of everything that `tensors` will yield, in the same order.
        tensors: (name, array) pairs.
    """
    header: dict = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, dtype) in infos.items():
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for (name, (shape, dtype)), (given, array) in zip(infos.items(), tensors, strict=True):
            if (given, array.shape, array.dtype) != (name, tuple(shape), dtype):
                raise ValueError(f"{path}: expected {name} {shape} {dtype}, got {given} {array.shape} {array.dtype}")
            _write_array(file, array)
        file.flush()
        os.fsync(file.fileno())


def _write_array(file, array: np.ndarray) -> None:
    for block in _blocks(np.ascontiguousarray(array).reshape(-1).view(np.uint8)):
        file.write(block.data)


def _blocks(flat: np.ndarray, size: int = 1 << 26) -> Iterator[np.ndarray]:
    for start in range(0, flat.size, size):
        yield flat[start : start + size]
