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
_SMALL_BYTES = 1 << 18


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
    """Writes `LazyArray`s as Orbax writes numpy arrays (and restores them as such), one block after the other.

    failure: the first error, or None. It is kept here rather than raised, because Orbax writes from several threads
    and prints the trace of each; the writing ends early, and the caller raises it.
    """

    def __init__(self, progress: Callable[[int], None] | None = None):
        super().__init__(deepcopy_host_arrays=False)
        self.failure: Exception | None = None
        self._progress = progress or (lambda written: None)
        self._large, self._small = asyncio.Semaphore(1), asyncio.Semaphore(64)

    async def _open_and_write(self, value: LazyArray, tspec: dict, ts_context: ts.Context) -> None:
        # Small arrays go together: the database commits once for all that wait.
        async with self._small if value.nbytes <= _SMALL_BYTES else self._large:
            if self.failure is None:
                try:
                    await self._write_blocks(value, tspec, ts_context)
                except Exception as error:
                    self.failure = error

    async def _write_blocks(self, value: LazyArray, tspec: dict, ts_context: ts.Context) -> None:
        # The whole directory is synced before it is renamed, so the single files need not be.
        spec = ts.Spec(tspec | {"context": {"file_io_sync": False}})
        store = await _written(ts.open(spec, create=True, open=True, context=ts_context))
        rows = _rows_per_block(value, store.chunk_layout.write_chunk.shape[0])
        pending = None
        for begin in range(0, value.shape[0], rows):
            block = value.read(begin, min(begin + rows, value.shape[0]))
            if pending is not None:
                await _written(pending)
            pending = store[begin : begin + len(block)].write(block, can_reference_source_data_indefinitely=True)
            self._progress(block.nbytes)
            del block
        await _written(pending)


async def _written(operation):
    try:
        return await operation
    except ValueError as error:  # what tensorstore raises, whatever the operating system said
        raise OSError(f"cannot write: is the disk full? ({str(error).splitlines()[0]})") from error


def _rows_per_block(value: LazyArray, chunk_rows: int) -> int:
    """A multiple of what can be read and what can be written without touching a chunk twice, of about one block."""
    least = value.step if value.step % chunk_rows == 0 else np.lcm(value.step, chunk_rows)
    row_bytes = max(value.nbytes // value.shape[0], 1)
    return int(least * max(_BLOCK_BYTES // int(least * row_bytes), 1))


def lazy_registry(handler: LazyArrayHandler) -> ocp.type_handlers.TypeHandlerRegistry:
    """Orbax's handlers for jax arrays and for `LazyArray`."""
    return ocp.type_handlers.create_type_handler_registry(
        (LazyArray, handler),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
