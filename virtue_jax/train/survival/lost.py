"""A process whose neighbour has ended fails with it: told apart from a failure of its own by its exit status."""

import jax

# What a process does wrong by itself, and would do again.
_OWN = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "NOT_FOUND", "OUT_OF_RANGE")


def another_is_lost(error: BaseException | None) -> bool:
    """Whether the runtime failed under `error` for a reason that lies between processes: a connection that closed, a
    barrier that not all reached. Asked only where a run has several."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, jax.errors.JaxRuntimeError):
            return not str(error).lstrip().startswith(_OWN)
        error = error.__cause__ or error.__context__
    return False
