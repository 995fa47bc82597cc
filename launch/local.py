#!/usr/bin/env python3
"""Several processes of `virtue train` on this machine, to see a multi-host run where one can look at it.

    python launch/local.py --processes 2 --devices 4 -- --config configs/quickstart.py --workdir runs/two
    python launch/local.py --processes 2 --gpus 0,1,2,3 -- --config configs/virtue_2b_scar.py --workdir runs/scar

What follows `--` goes to `virtue train`; the launcher adds how the processes find each other. Every line that they say
starts with the number of the process. SIGTERM and SIGINT go to all of them. When one ends with an error the others are
ended; the run is started again, and goes on from its last checkpoint, after 69, 70, 75 and kills. Exit status: 0
finished; 75 told to stop, and saved; otherwise that of the process that cannot go on, or of the last start.
"""

import argparse
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, this needs nothing but the tree

from virtue_jax.exit_status import AGAIN, DONE, REFUSED, SAVED

LAST_WORDS = 5.0  # seconds in which the others can say how they noticed
HEALTHY = 600.0  # seconds after which a start has proved itself: retries are counted anew


class Start(NamedTuple):
    """One process: what is run, and what is set for it beside this environment."""

    command: list[str]
    environment: dict[str, str]


def main(argv: list[str] | None = None) -> int:
    options = parsed(sys.argv[1:] if argv is None else argv)
    if options.dry_run:
        for start in starts(options, "localhost:PORT"):
            print(shown(start))
        return 0
    run = Run(options)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, run.told)
    try:
        return supervised(run, options.retries)
    except (OSError, subprocess.CalledProcessError) as error:
        say(f"cannot be started: {error}")
        return REFUSED


def parsed(argv: list[str]) -> argparse.Namespace:
    """Options; ends with status 2 and one line where they cannot be carried out."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("launch/local.py", description=__doc__, formatter_class=shape, allow_abbrev=False)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=4, help="virtual CPU devices of each process (default 4)")
    parser.add_argument("--gpus", default="", help="GPUs to share out in place of CPU devices: 0,1,2,3")
    parser.add_argument("--retries", type=int, default=3, help="starts after a failure; 10 minutes of life reset it")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds that the others have to save when one has")
    parser.add_argument("--program", default="", help="run this in place of `virtue train`")
    parser.add_argument("--dry-run", action="store_true", help="print the commands; start nothing")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="-- arguments of `virtue train`")
    options = parser.parse_args(argv)
    options.arguments = options.arguments[options.arguments[:1] == ["--"] :]
    options.gpus = [gpu for gpu in options.gpus.split(",") if gpu]
    if options.processes < 1 or options.devices < 1 or options.retries < 0:
        parser.error("--processes and --devices are at least 1, --retries at least 0")
    if options.gpus and len(options.gpus) % options.processes:
        parser.error(f"{len(options.gpus)} GPUs cannot be shared out evenly over {options.processes} processes")
    if not any(argument.split("=")[0] == "--workdir" for argument in options.arguments):
        parser.error("no --workdir among the arguments of `virtue train`, which follow `--`")
    return options


def starts(options: argparse.Namespace, coordinator: str) -> list[Start]:
    """What is run, by process number."""
    program = shlex.split(options.program) or [_virtue(), "train"]
    out = []
    for number in range(options.processes):
        joined = ["--coordinator", coordinator, f"--processes={options.processes}", f"--process={number}"]
        command = [*program, *options.arguments, *(joined if options.processes > 1 else [])]
        out.append(Start(command, _environment(options, number)))
    return out


def _environment(options: argparse.Namespace, number: int) -> dict[str, str]:
    given = os.environ.get("XLA_FLAGS", "")
    if options.gpus:
        share = len(options.gpus) // options.processes
        mine = ",".join(options.gpus[number * share : (number + 1) * share])
        flags = subprocess.run([_virtue(), "flags", "gpu"], check=True, capture_output=True, text=True).stdout
        return {"CUDA_VISIBLE_DEVICES": mine, "XLA_FLAGS": f"{flags.strip()} {given}".strip()}
    flags = f"{given} --xla_force_host_platform_device_count={options.devices}".strip()
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def _virtue() -> str:
    """The command beside this interpreter, or else the one on PATH."""
    beside = Path(sys.executable).with_name("virtue")
    return str(beside) if beside.exists() else shutil.which("virtue") or "virtue"


def shown(start: Start) -> str:
    """As one would type it."""
    return shlex.join(["env", *(f"{name}={value}" for name, value in start.environment.items()), *start.command])


class Run:
    """The processes of one start, and whether somebody has told the launcher to stop."""

    def __init__(self, options: argparse.Namespace):
        self._options = options
        self._processes: list[subprocess.Popen] = []
        self.stopping = False

    def told(self, number: int, _frame) -> None:
        self.stopping = True
        say(f"{signal.Signals(number).name}: passed on to all processes")
        self._signal(number)

    def once(self) -> list[int]:
        """Starts all, waits for all, ends those that stay behind one that failed; exit statuses by process."""
        self._processes, readers = [], []
        try:
            for number, start in enumerate(starts(self._options, free_address())):
                self._processes.append(self._started(number, start))
                readers.append(self._reader(number, self._processes[-1]))
            if self.stopping:  # the signal came while they were being started
                self._signal(signal.SIGTERM)
            while any(process.poll() is None for process in self._processes):
                if any(process.poll() for process in self._processes):
                    self._end_the_rest()
                time.sleep(0.1)
        finally:
            self._signal(signal.SIGKILL)
        for reader in readers:
            reader.join()
        return [process.returncode for process in self._processes]

    def _started(self, number: int, start: Start) -> subprocess.Popen:
        process = subprocess.Popen(
            start.command,
            env=os.environ | start.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # A session of its own: a terminal's Ctrl-C comes to the launcher only, and is passed on once.
            start_new_session=True,
        )
        say(f"process {number} is {process.pid}")
        return process

    def _reader(self, number: int, process: subprocess.Popen) -> threading.Thread:
        def read() -> None:
            for line in process.stdout:
                say(line.rstrip("\n"), f"[{number}]")

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return thread

    def _end_the_rest(self) -> None:
        """Those that do not follow one that has ended are told, and then killed: alone they cannot go on."""
        saved = all(process.poll() in (None, DONE, SAVED) for process in self._processes)
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                self._signal(number)
            end = time.monotonic() + (self._options.grace if saved else LAST_WORDS)
            while time.monotonic() < end and any(process.poll() is None for process in self._processes):
                time.sleep(0.1)

    def _signal(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)


def supervised(run: Run, retries: int) -> int:
    """Starts the run until it is finished or need not be tried again; the launcher's exit status."""
    left = retries
    while True:
        begin = time.monotonic()
        statuses = run.once()
        what, status = verdict(statuses)
        say(f"ended with {statuses}: {what}")
        if what != "again" or run.stopping:
            return status
        if time.monotonic() - begin > HEALTHY:
            left = retries
        if left == 0:
            say(f"not started again: {retries} retries are used up")
            return status
        left -= 1
        say(f"starting again ({left} more after this)")


def verdict(statuses: list[int]) -> tuple[str, int]:
    """("finished" | "again" | "stop", exit status). Negative = killed by that signal; launch/launcher.sh says the same.

    A process that cannot go on is why the others ended, whatever they ended with.
    """
    shell = [128 - status if status < 0 else status for status in statuses]
    failed = [status for status in shell if status]
    own = [status for status in failed if status not in AGAIN and status <= 128]
    if own:
        return "stop", own[0]
    if failed:
        return "again", SAVED if SAVED in failed else failed[0]
    return "finished", DONE


_saying = threading.Lock()


def say(line: str, who: str = "[launch]") -> None:
    with _saying:
        print(who, line, flush=True)


def free_address() -> str:
    """HOST:PORT for a coordinator on this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


if __name__ == "__main__":
    sys.exit(main())
