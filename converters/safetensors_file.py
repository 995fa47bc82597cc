"""The safetensors format: read through the `safetensors` package, written tensor by tensor.

The package writes only what is in memory as a whole, so a file of several gigabytes is written here.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from converters.errors import CheckpointError
from converters.mapped_file import MappedFile, TensorInfo

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
    "C64": np.dtype(np.complex64),
    # Of quantised weights, which are known by them and refused.
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F4": np.dtype(ml_dtypes.float4_e2m1fn),
    "F6_E2M3": np.dtype(ml_dtypes.float6_e2m3fn),
    "F6_E3M2": np.dtype(ml_dtypes.float6_e3m2fn),
}
_HEADER_LIMIT = 100_000_000  # bytes, as in the library
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class SafetensorsFile(MappedFile):
    """One `.safetensors` file.

    Raises:
        CheckpointError: a file that is empty, truncated, has a damaged header, or whose header and length disagree.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        file = self._open()
        names = file.keys()
        slices = {name: file.get_slice(name) for name in names}
        self.infos = {
            name: TensorInfo(tuple(x.get_shape()), _DTYPES[x.get_dtype()], path) for name, x in slices.items()
        }

    def _load(self):
        if self.path.stat().st_size == 0:
            raise CheckpointError([f"{self.path}: the file is empty; copy it again"])
        try:
            return safe_open(self.path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(_diagnosis(self.path, error)) from error

    def _copy(self, opened, name: str) -> np.ndarray:
        return opened.get_tensor(name)


def _diagnosis(path: Path, error: Exception) -> list[str]:
    """What is wrong with a file that the library refuses, which does not say with which tensor, nor by how much."""
    unknown = [f"{path}: truncated, damaged or not safetensors ({error}); copy it again"]
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, _HEADER_LIMIT)))
        header.pop("__metadata__", None)
        lines = [
            f"{path}: tensor {name}: damaged header entry {entry}; copy the file again"
            for name, entry in header.items()
            if np.diff(entry["data_offsets"]) != np.prod(entry["shape"]) * _DTYPES[entry["dtype"]].itemsize
        ]
        end = max(entry["data_offsets"][1] for entry in header.values())
    except (ValueError, LookupError, TypeError, AttributeError, OSError):
        return unknown
    have = path.stat().st_size - 8 - length
    if not lines and have != end:
        kind = "truncated" if have < end else "longer than its header says"
        lines = [f"{path}: {kind}: {have} bytes of tensor data, the header lists {end}; copy it again"]
    return lines or unknown


def write_safetensors(
    path: Path, infos: Mapping[str, tuple[tuple[int, ...], np.dtype]], tensors: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Writes one file, holding one tensor at a time.

    Args:
        infos: {name: (shape, dtype)} of everything that `tensors` will yield, in the same order.
        tensors: (name, array) pairs.

    Raises:
        ValueError: `tensors` are not those of `infos`. OSError: the file cannot be written whole.
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
        for (name, (shape, dtype)), (yielded, array) in zip(infos.items(), tensors, strict=True):
            if (yielded, array.shape, array.dtype) != (name, tuple(shape), dtype):
                raise ValueError(f"{path}: expected {name} {shape} {dtype}, got {yielded} {array.shape} {array.dtype}")
            for block in _blocks(np.ascontiguousarray(array).reshape(-1).view(np.uint8)):
                file.write(block.data)
        file.flush()
        os.fsync(file.fileno())


def _blocks(flat: np.ndarray, size: int = 1 << 26) -> Iterator[np.ndarray]:
    for start in range(0, flat.size, size):
        yield flat[start : start + size]
