"""One compile command in a process of its own, which ends with the process that started it."""

import ctypes
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from virtue_jax.aot.study.content_key import ROOT
from virtue_jax.aot.study.entry import Entry, misreport
from virtue_jax.aot.study.point import Point
from virtue_jax.exit_status import DOES_NOT_FIT, DONE

TOLD = 6  # last lines of a failed command that are kept
_INSTALLED = re.compile(r"/[^\s\"']*/site-packages/")
_PATIENCE = 5.0  # seconds between asking a process to end and ending it
_DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Busy(Exception):
    """Another process compiles the same content into the same cache."""


class CompileJob:
    """Holds the lock of its key in the cache from the first moment until `close`.

    Raises:
        Busy: the lock is taken.
    """

    def __init__(self, point: Point, key: str, cache: Path, command: Sequence[str]):
        self.point, self._key, self._command = point, key, list(command)
        self._folder = cache / "work" / key
        self._folder.parent.mkdir(exist_ok=True)
        self._lock = (cache / "work" / f"{key}.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise Busy from error
        self._process: subprocess.Popen | None = None
        self._seen = 0.0

    def start(self) -> None:
        """Starts the command in a session of its own. Raises OSError: the program cannot be run."""
        shutil.rmtree(self._folder, ignore_errors=True)  # of a process that was killed
        self._folder.mkdir()
        line = [*self._command, *self.point.arguments(), "--json", str(self._report)]
        self._begun = time.monotonic()
        self._parents = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with (self._folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},  # its output, and then its error: the last lines are kept
                start_new_session=True,  # Ctrl-C reaches the study alone, which then ends its processes
                preexec_fn=_die_with_parent,
            )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def resident_gib(self) -> float:
        """Peak memory so far, where the system says it; else 0."""
        with suppress(OSError, ValueError, IndexError):
            for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    self._seen = max(self._seen, int(line.split()[1]) / 2**20)
        return self._seen

    def result(self) -> Entry | None:
        """None while it runs."""
        self.resident_gib()
        pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if not pid:
            return None
        code = self._process.returncode = os.waitstatus_to_exitcode(status)
        report, error = self._read(code)
        peak = self._peak_gib(usage.ru_maxrss)
        return Entry(self.point.inputs(), self._key, report, error, round(self.seconds, 3), round(peak, 3))

    def _peak_gib(self, said: int) -> float:
        """said: `ru_maxrss`, which on Linux counts the copy of its parent that a process starts as."""
        if self._seen and said <= self._parents:
            return self._seen
        return said / (2**30 if sys.platform == "darwin" else 2**20)

    def kill(self) -> None:
        """Ends the command and what it started."""
        if self._process is not None and self._process.returncode is None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_PATIENCE)
                    break
        self.close()

    def close(self) -> None:
        """Whoever waits for this content may look for it now."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()

    @property
    def _report(self) -> Path:
        return self._folder / "report.json"

    def _read(self, code: int) -> tuple[dict | None, str]:
        """(report, why there is none)."""
        if code < 0:
            return None, f"killed by signal {-code} ({signal.Signals(-code).name}){self._said()}"
        if code not in (DONE, DOES_NOT_FIT):
            return None, f"exit status {code}{self._said()}"
        try:
            report = json.loads(_portable(self._report.read_text()))
            wrong = misreport(report) or _contradiction(code, report)
        except FileNotFoundError:
            wrong = "none was written"
        except (OSError, ValueError) as error:
            wrong = f"it cannot be read ({type(error).__name__})"
        return (None, f"exit status {code}, but no whole report: {wrong}{self._said()}") if wrong else (report, "")

    def _said(self) -> str:
        lines = _portable((self._folder / "output").read_text(errors="replace")).strip().splitlines()
        return ": " + " | ".join(line.strip() for line in lines[-TOLD:]) if lines else ""


def _portable(text: str) -> str:
    """Source lines without where this machine has the sources: reports are kept and passed on."""
    return _INSTALLED.sub("", text.replace(f"{ROOT}/", ""))


def _contradiction(code: int, report: dict) -> str:
    if report["fits"] != (code == DONE):
        return f"it says fits = {report['fits']}"
    return ""


def _die_with_parent() -> None:
    """Also where that is killed in a way it cannot notice: a compilation takes gigabytes."""
    if _LIBC is not None:
        _LIBC.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
