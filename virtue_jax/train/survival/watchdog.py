"""A run that hangs (a dead peer, a stuck file system, a deadlock) is ended, with the stacks of all its threads."""

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path

HUNG = 70  # EX_SOFTWARE of sysexits.h: exit status of a process that its watchdog ended


class Watchdog:
    """While entered: without a `beat` for `minutes`, writes every thread's stack to stderr and to
    `folder/stacks-PID.txt` and ends the process with status 70. 0 minutes = never."""

    def __init__(self, minutes: float, folder: Path):
        self._seconds, self._file = 60 * minutes, folder / f"stacks-{os.getpid()}.txt"
        self._beat, self._ended = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """A step is finished, or something else that may take long is."""
        self._beat = time.monotonic()

    def __enter__(self) -> "Watchdog":
        self.beat()
        if self._seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() - self._beat > self._seconds:
                self._end()

    def _end(self) -> None:
        line = f"watchdog: no step finished for {self._seconds:.0f} s; the stacks of all threads are in {self._file}"
        print(line, file=sys.stderr, flush=True)
        try:
            with self._file.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        finally:
            os._exit(HUNG)
