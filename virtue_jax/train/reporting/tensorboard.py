"""Scalars for TensorBoard, written where they are made: tensorboardX's own writer hands them to a thread, and waits
for ever once that thread has met a full disk."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar


class Board:
    """One event file in `folder`. start: the step after which an earlier run's events are void; 0 = a new run."""

    def __init__(self, folder: Path, start: int):
        folder.mkdir(exist_ok=True)
        self._file = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        if start:
            self._file.write_event(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a scalar event for each of `values`. Raises OSError: the file cannot be written."""
        for name, value in values.items():
            self._file.write_event(Event(step=step, wall_time=time.time(), summary=scalar(name, value)))
        self._file.flush()

    def close(self) -> None:
        """Writes what is left and closes the file. Raises OSError: the file cannot be written."""
        self._file.close()
