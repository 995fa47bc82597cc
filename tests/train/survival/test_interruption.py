import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from virtue_jax.exit_status import HUNG
from virtue_jax.train.survival.interruption import Interrupted, StopSignal
from virtue_jax.train.survival.watchdog import Watchdog

ROOT = Path(__file__).parents[2]


def test_a_signal_outside_of_the_loop_ends_at_once_and_no_except_exception_stops_it():
    with pytest.raises(Interrupted, match="SIGTERM"), StopSignal():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            pytest.fail("taken for a failure")


def test_the_loop_finds_the_signal_and_a_second_ctrl_c_is_immediate():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        stop.deferred = True
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_that_hangs_is_ended_with_its_stacks(tmp_path):
    code = f"""
    import threading
    from pathlib import Path
    from virtue_jax.train.survival.watchdog import Watchdog

    def stuck_in_here():
        threading.Event().wait()

    with Watchdog(0.01, Path({str(tmp_path)!r})) as watchdog:
        watchdog.beat("the restore", times=2)
        stuck_in_here()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == HUNG
    (file,) = tmp_path.glob("stacks-*.txt")
    assert "stuck_in_here" in file.read_text() and "stuck_in_here" in done.stderr
    assert re.search(rf"watchdog: nothing finished for 1 s in the restore; .*{file}", done.stderr)


def test_a_run_that_goes_on_is_left_alone(tmp_path):
    with Watchdog(0.02, tmp_path) as watchdog:
        for _ in range(8):
            watchdog.beat()
            watchdog._ended.wait(0.25)  # together more than the limit of 1.2 s
    assert not list(tmp_path.iterdir())
