"""What a file says of its tensors, and how one is read without holding the file in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Pages of a mapped file count as resident until it is unmapped: it is mapped afresh after this many bytes were read.
_REMAP_AFTER = 1 << 28


@dataclass(frozen=True)
class TensorInfo:
    """What a file says of one tensor before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class MappedFile:
    """One checkpoint file that is mapped into memory while tensors are read: `infos` {name: TensorInfo}, `read(name)`.

    Subclasses give `_load`, the opened file, and `_copy`, one tensor of it as an array of its own.
    """

    infos: dict[str, TensorInfo]
    mapped = True  # a kind of file that cannot be is read once, whole

    def __init__(self, path: Path):
        self.path = path
        self._opened: Any = None
        self._touched = 0

    @property
    def is_open(self) -> bool:
        return self._opened is not None

    def read(self, name: str) -> np.ndarray:
        """A copy of the tensor, in its own dtype."""
        array = self._copy(self._open(), name)
        self._touched += array.nbytes
        if self.mapped and self._touched > _REMAP_AFTER:
            self.close()
        return array

    def close(self) -> None:
        """Unmaps the file; the next `read` opens it again."""
        self._opened, self._touched = None, 0

    def _open(self) -> Any:
        if self._opened is None:
            self._opened = self._load()
        return self._opened

    _load: Callable[[], Any]
    _copy: Callable[[Any, str], np.ndarray]
