"""How a command of this package ends, as a number: each has one meaning, wherever it is used.

`virtue`, `python -m converters` and `python -m virtue_jax.train.reproduce` end with these; `launch/` reads this file
(`NAME = NUMBER`, one a line) to decide whether a run is started again. `python -m virtue_jax.exit_status` prints them
for a shell.
"""

DONE = 0  # done as asked; a training run is finished
FAILED = 1  # a fault of the program, with a traceback (Python's own status)
REFUSED = 2  # cannot be done as given: a wrong value or file, a full disk, a loss that is not finite
DOES_NOT_FIT = 3  # `virtue compile`: the step compiles, and needs more memory than the chip has
INCOMPLETE = 4  # `virtue scale`: a point of the study failed, or was not compiled
NOT_FINITE = 5  # `python -m virtue_jax.train.reproduce`: the step is not finite on this machine either
ANOTHER_ENDED = 69  # a training process whose neighbour has ended; that one's status says why (EX_UNAVAILABLE)
HUNG = 70  # a training process that its watchdog ended (EX_SOFTWARE)
SAVED = 75  # a training run that was told to stop (SIGTERM, SIGINT) and has saved (EX_TEMPFAIL)
INTERRUPTED = 130  # stopped by Ctrl-C or SIGTERM, outside of training (128 + SIGINT)
UNREAD = 141  # whoever read the output has closed it: `virtue ... | head -1` (128 + SIGPIPE)

AGAIN = (ANOTHER_ENDED, HUNG, SAVED)  # the same command goes on where the run stopped; so it does after a kill (> 128)


def statuses() -> dict[str, int]:
    """{name: number} of all of them."""
    return {name: value for name, value in globals().items() if name.isupper() and isinstance(value, int)}


if __name__ == "__main__":
    print("\n".join(f"{name}={value}" for name, value in statuses().items()))
