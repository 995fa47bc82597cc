"""Elements read by the threads or worker processes of a process, which serve all its packing streams."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor

from virtue_jax.data.loading.elements import Element, ElementReader

# Of the whole process group: a scheduler's notice, Ctrl-C. The main process still needs data for its last steps then.
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_reader: ElementReader | None = None  # of a worker process


class ReadPool:
    """Reads elements in the order asked for, as many at a time as there are threads, or `workers` if not 0.

    Threads and processes start as they are first needed. `close` ends them, and cancels what nobody has begun to read.
    Processes ignore SIGTERM and SIGINT and end with their parent, however that ends.
    """

    def __init__(self, reader: ElementReader, workers: int = 0):
        self._executor: Executor
        if workers:
            # Spawned: JAX's threads do not survive a fork.
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(workers, context, _start_worker, (reader,))
            self._read = _read_in_worker
        else:
            self._executor = ThreadPoolExecutor(os.cpu_count(), "reading")
            self._read = reader.__getitem__
        self._workers = workers

    def read(self, number: int) -> "Future[Element]":
        if not self._workers:
            return self._executor.submit(self._read, number)
        # This may start a process, which inherits what is blocked: nothing kills it before it ignores the signals.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            return self._executor.submit(self._read, number)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        self._executor.shutdown(wait=bool(self._workers), cancel_futures=True)


def _start_worker(reader: ElementReader) -> None:
    global _reader
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _reader = reader


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _read_in_worker(number: int) -> Element:
    return _reader[number]
