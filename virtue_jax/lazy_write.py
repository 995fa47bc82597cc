"""Arrays that are made while an Orbax checkpoint is being written, block by block: writing never holds two of them."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

_BLOCK_BYTES = 1 << 25


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
    def of(cls, array: np.ndarray) -> "LazyArray":
        """An array that is there already; written as a whole."""
        return cls(array.shape, array.dtype, lambda begin, end: array[begin:end], step=max(array.shape[0], 1))

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


class LazyArrayHandler(ocp.type_handlers.NumpyHandler):
    """Writes `LazyArray`s as Orbax writes numpy arrays (and restores them as such), one block after the other."""

    def __init__(self, progress: Callable[[int], None] | None = None):
        super().__init__(deepcopy_host_arrays=False)
        self._progress = progress or (lambda written: None)
        self._turn = asyncio.Lock()

    async def _open_and_write(self, value: LazyArray, tspec: dict, ts_context: ts.Context) -> None:
        async with self._turn:
            store = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
            rows = _rows_per_block(value, store.chunk_layout.write_chunk.shape[0])
            written = None
            for begin in range(0, value.shape[0], rows):
                end = min(begin + rows, value.shape[0])
                block = value.read(begin, end)
                if written is not None:
                    await written
                written = store[begin:end].write(block, can_reference_source_data_indefinitely=True)
                self._progress(block.nbytes)
                del block
            await written


def _rows_per_block(value: LazyArray, chunk_rows: int) -> int:
    """A multiple of what can be read and what can be written without touching a chunk twice, of about one block."""
    least = value.step if value.step % chunk_rows == 0 else np.lcm(value.step, chunk_rows)
    row_bytes = max(value.nbytes // value.shape[0], 1)
    return int(least * max(_BLOCK_BYTES // int(least * row_bytes), 1))


def lazy_registry(progress: Callable[[int], None] | None = None) -> ocp.type_handlers.TypeHandlerRegistry:
    """Orbax's handlers for jax arrays and for `LazyArray`; `progress` gets the bytes written since its last call."""
    return ocp.type_handlers.create_type_handler_registry(
        (LazyArray, LazyArrayHandler(progress)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
