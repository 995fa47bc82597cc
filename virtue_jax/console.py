"""Where commands print to: one kind of console, whose tables are as wide as they need unless a terminal is narrower."""

import os

from rich.console import Console

UNLIMITED = 10_000  # columns, of a file or a pipe


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # rich would end the process with a status of its own; whoever started the command decides


def console(**options) -> Console:
    """A console with rich's `options`, as wide as the terminal or $COLUMNS; of a file, without limit."""
    screen = _Console(**options)
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        screen.width = UNLIMITED
    return screen
