"""One process that is told to stop does not wait for data, and loses no step that it finished."""

import contextlib
import os
import signal
import threading
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from virtue_jax.train.steps import Started, StepLoop
from virtue_jax.train.survival.interruption import Interrupted, StopSignal


class Recorder:
    """Stands in for whatever a step loop tells something; remembers what was saved."""

    def __init__(self):
        self.saved = []

    def save(self, state, position, *, step):
        self.saved.append(step)

    def measure(self, part):
        return contextlib.nullcontext()

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def loop_at(step, loader, stop, checkpoints):
    """A loop that has finished `step` steps and looked at all of them."""
    quiet = Recorder()
    made = StepLoop(
        config=SimpleNamespace(steps=9),
        stages=None,
        frozen={},
        loader=loader,
        streams=(0,),
        checkpoints=checkpoints,
        log=quiet,
        clock=quiet,
        stop=stop,
        nonfinite=None,
        watchdog=quiet,
        evaluations=quiet,
        workdir=None,
    )
    made.done, made._state, made._pending = step, None, None
    made._settled = Started(step, None, {"loss": jnp.float32(0)}, {"streams": {}}) if step else None
    return made


def test_workers_that_die_of_the_signal_cost_no_step():
    with StopSignal() as stop:
        stop.deferred = True

        def dies():
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("a worker is gone")
            yield

        stop_in_data = Recorder()
        loop = loop_at(4, dies(), stop, stop_in_data)
        with pytest.raises(Interrupted, match="SIGTERM: stopped after step 4 of 9, which is saved"):
            loop._next()
        assert stop_in_data.saved == [4]


def test_a_signal_ends_the_wait_for_data():
    with StopSignal() as stop:
        stop.deferred = True

        def hangs():
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
            threading.Event().wait(60)
            pytest.fail("waited for the data")
            yield

        checkpoints = Recorder()
        with pytest.raises(Interrupted, match="after step 4"):
            loop_at(4, hangs(), stop, checkpoints)._next()
        assert checkpoints.saved == [4] and stop.deferred


def test_a_signal_before_the_first_step_saves_nothing():
    with StopSignal() as stop:
        stop.deferred = True
        os.kill(os.getpid(), signal.SIGTERM)
        checkpoints = Recorder()
        with pytest.raises(Interrupted, match="stopped before the first step"):
            loop_at(0, iter(()), stop, checkpoints)._next()
        assert not checkpoints.saved


def test_an_error_of_the_data_without_a_signal_is_raised():
    def fails():
        raise RuntimeError("the disk is gone")
        yield

    with StopSignal() as stop, pytest.raises(RuntimeError, match="the disk is gone"):
        loop_at(4, fails(), stop, Recorder())._next()
