"""A run that hangs (a dead peer, a stuck file system, a deadlock) is ended, with the stacks of all its threads."""

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path

from virtue_jax.exit_status import HUNG

LONG = 4  # times the minutes that a step has: for starting, restoring, compiling, saving, writing the model


class Watchdog:
    """While entered: without a `beat` for `minutes` (times those of the phase), writes every thread's stack to stderr
    and to `folder/stacks-PID.txt` and ends the process with status `HUNG`. 0 minutes = never."""

    def __init__(self, minutes: float, folder: Path):
        self._seconds, self._file = 60 * minutes, folder / f"stacks-{os.getpid()}.txt"
        self._now, self._ended = (time.monotonic(), "start-up", self._seconds), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, phase: str = "the steps", times: float = 1) -> None:
        """Something is finished; what comes next is (part of) `phase`, and may take `times` the minutes."""
        self._now = (time.monotonic(), phase, times * self._seconds)

    def __enter__(self) -> "Watchdog":
        self.beat("start-up", LONG)
        if self._seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._seconds / 4)):
            beat, phase, seconds = self._now
            if time.monotonic() - beat > seconds:
                self._end(phase, seconds)

    def _end(self, phase: str, seconds: float) -> None:
        line = f"watchdog: nothing finished for {seconds:.0f} s in {phase}; stacks of all threads are in {self._file}"
        print(line, file=sys.stderr, flush=True)
        try:
            with self._file.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        finally:
            os._exit(HUNG)
