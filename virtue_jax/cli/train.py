"""Train from a run file, or resume where the work directory holds checkpoints of the same configuration. Every value of
a run can be set: --config.steps=100 --config.data.sources.NAME.path=DIR

Several processes, each started with the same command and a work directory that all can reach, either
  --coordinator HOST:PORT --processes N --process I   HOST:PORT of process 0, I from 0 to N - 1
  --distributed                                       found out from the machine (TPU pods, SLURM, Open MPI)

Exit status: 0 the run is finished; 2 it cannot go on as given (a wrong value, a full disk, a loss that is not finite;
one line says what); 69 another process of the run ended, and this one with it; 70 the watchdog ended a run that hung;
75 it was told to stop (SIGTERM, SIGINT), saved, and the same command goes on. A supervisor (launch/) starts it again
after 69, 70 and 75, and after a kill; if any process ended with 2, that is the reason of the others' end, and it stops.
"""

import argparse
import os
import sys
import time

from virtue_jax.cli.parser import add_run_file
from virtue_jax.cli.run_file import train_config
from virtue_jax.exit_status import ANOTHER_ENDED, REFUSED, SAVED

GRACE = 3.0  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_run_file(parser)
    add("--workdir", required=True, metavar="DIR", help="where checkpoints, metrics and the model go")
    add("--coordinator", default="", metavar="HOST:PORT", help="of process 0")
    add("--processes", type=int, default=0, metavar="N", help="how many processes the run has")
    add("--process", type=int, default=-1, metavar="I", help="which of them this one is, from 0")
    add("--distributed", action="store_true", help="several processes, as the machine says")


def run(args: argparse.Namespace) -> None:
    """Trains, or resumes."""
    if "://" in args.workdir:
        raise ValueError(f"--workdir {args.workdir}: expected a folder; a bucket has to be mounted as one first")
    config = train_config(args)
    from virtue_jax.console import console
    from virtue_jax.parallel.processes import is_alone, join
    from virtue_jax.train.loop import train
    from virtue_jax.train.survival.interruption import Interrupted

    if args.distributed or args.coordinator or args.processes or args.process >= 0:
        join(args.coordinator, args.processes, args.process)
    try:
        train(config, args.workdir, console())
    except Interrupted as stop:
        print(f"virtue train: {stop}", file=sys.stderr, flush=True)
        if not stop.together and not is_alone():
            _leave_alone()
        sys.exit(SAVED)
    except Exception as error:
        if not is_alone():
            _leave(error)
        raise


def _leave_alone() -> None:
    """Ends this process: the others may know nothing of the signal, and leaving in good order would wait for them."""
    from virtue_jax.parallel.processes import is_leader

    sys.stdout.flush()
    if is_leader():  # with the leader the service ends that the others depend on: let those who were told leave as well
        time.sleep(GRACE)
    os._exit(SAVED)


def _leave(error: Exception) -> None:
    """Ends this process at once: leaving in good order would wait for the others, who wait for this one."""
    from virtue_jax.parallel.processes import process_number
    from virtue_jax.train.survival.lost import another_is_lost

    lost = another_is_lost(error)
    if not lost and not isinstance(error, ValueError | OSError | FloatingPointError):
        import traceback

        traceback.print_exception(error)
    reason = "another process of the run ended: " * lost
    print(f"virtue train: process {process_number()}: {reason}{error}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(ANOTHER_ENDED if lost else REFUSED)
