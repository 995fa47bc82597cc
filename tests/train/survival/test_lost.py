"""Which failures are another process's."""

import jax
import pytest

from virtue_jax.train.survival.lost import another_is_lost

FAILED = jax.errors.JaxRuntimeError


@pytest.mark.parametrize(
    "said",
    [
        "UNAVAILABLE: The following tasks are unhealthy",
        "INTERNAL: Gloo AllGather failed: Connection closed by peer",
        "DEADLINE_EXCEEDED: Barrier timed out",
        "ABORTED: slice health check failed",
    ],
)
def test_a_runtime_that_lost_its_peers_is_told_however_deep_it_lies(said):
    error = FAILED(said)
    assert another_is_lost(error)
    wrapped = OSError("step_3 could be read, but cannot be restored")
    wrapped.__cause__ = error
    assert another_is_lost(wrapped)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a wrong value"),
        OSError("no space left"),
        FloatingPointError("not finite"),
        FAILED("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes"),
        FAILED("INVALID_ARGUMENT: shapes differ"),
        None,
    ],
)
def test_a_failure_of_its_own_is_not(error):
    assert not another_is_lost(error)
