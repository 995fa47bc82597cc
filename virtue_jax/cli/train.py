"""`virtue train --config configs/NAME.py --workdir DIR [--config.x=y ...]`

Exit status: 0 the run is finished; 2 it cannot go on as given (a wrong value, a full disk, a loss that is not finite;
one line says what); 69 another process of the run ended, and this one with it; 70 the watchdog ended a run that hung;
75 it was told to stop (SIGTERM, SIGINT), saved, and the same command goes on. A supervisor starts it again after 69, 70
and 75, and after a kill; if any process ended with 2, that is the reason of the others' end, and it stops.
"""

import os
import sys
import time

from absl import flags

from virtue_jax.cli.run_file import read_run_file
from virtue_jax.config import from_dict
from virtue_jax.parallel.processes import is_alone, is_leader, join, process_number
from virtue_jax.train.loop import train
from virtue_jax.train.step.config import TrainConfig
from virtue_jax.train.survival.interruption import SAVED, Interrupted
from virtue_jax.train.survival.lost import LOST, another_is_lost

GRACE = 3.0  # seconds
USAGE = "virtue train --config configs/NAME.py --workdir DIR [--config.x=y ...]"
HELP = f"""usage: {USAGE}
Every value of a TrainConfig can be set: --config.steps=100 --config.data.sources.NAME.path=DIR
Several processes, each started with the same command and a workdir that all can reach, either
  --coordinator HOST:PORT --processes N --process I   HOST:PORT of process 0, I from 0 to N - 1
  --distributed                                       found out from the machine (TPU pods, SLURM, Open MPI)
Exit status: 0 finished; 2 cannot go on; 69 another process ended, 70 ended by its watchdog, 75 told to stop and saved:
start it again (launch/ does)"""


def run(argv: list[str]) -> None:
    """Trains, or resumes where `--workdir` holds checkpoints of the same configuration."""
    if "--help" in argv or "-h" in argv:
        print(HELP)
        return
    config, options = _parse(argv)
    if options.distributed or options.coordinator or options.processes or options.process >= 0:
        join(options.coordinator, options.processes, options.process)
    try:
        train(config, options.workdir)
    except Interrupted as stopped:
        print(f"virtue train: {stopped}", file=sys.stderr, flush=True)
        if not stopped.together and not is_alone():
            _leave_alone()
        sys.exit(SAVED)
    except Exception as error:
        if not is_alone():
            _leave(error)
        raise


def _leave_alone() -> None:
    """Ends this process: the others may know nothing of the signal, and leaving in good order would wait for them."""
    sys.stdout.flush()
    if is_leader():  # with the leader the service ends that the others depend on: let those who were told leave as well
        time.sleep(GRACE)
    os._exit(SAVED)


def _leave(error: Exception) -> None:
    """Ends this process at once: leaving in good order would wait for the others, who wait for this one."""
    lost = another_is_lost(error)
    if not lost and not isinstance(error, ValueError | OSError | FloatingPointError):
        import traceback

        traceback.print_exception(error)
    reason = "another process of the run ended: " * lost
    print(f"virtue train: process {process_number()}: {reason}{error}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(LOST if lost else 2)


def _parse(argv: list[str]) -> tuple[TrainConfig, flags.FlagValues]:
    given, values = read_run_file("virtue train", argv, USAGE, _define)
    if given is None or not values.workdir:
        raise ValueError(f"usage: {USAGE}")
    if "://" in values.workdir:
        raise ValueError(f"--workdir {values.workdir}: expected a folder; a bucket has to be mounted as one first")
    return from_dict(TrainConfig, given), values


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "where checkpoints, metrics and the model go", flag_values=values)
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0", flag_values=values)
    flags.DEFINE_integer("processes", 0, "how many processes the run has", flag_values=values)
    flags.DEFINE_integer("process", -1, "which of them this one is, from 0", flag_values=values)
    flags.DEFINE_bool("distributed", False, "several processes, as the machine says", flag_values=values)
