"""`virtue flags TARGET [--explain]`: the compiler flags for a kind of chip, as a launcher sets them."""

from rich.console import Console
from rich.table import Table

from virtue_jax.aot.xla_flags import FLAGS, as_arguments, flags_for, variable_for

USAGE = "virtue flags TARGET [--explain]"
HELP = f"""usage: {USAGE}
TARGET is one of {", ".join(FLAGS)}. Prints one line for the environment of `virtue train`:
  export LIBTPU_INIT_ARGS="$(virtue flags v6e)"     TPUs; an empty line where libtpu's own choices are kept
  export XLA_FLAGS="$(virtue flags gpu)"            GPUs
--explain: a table with the reason of each instead."""


def run(argv: list[str]) -> None:
    """Prints them.

    Raises:
        ValueError: no such target, or other arguments.
    """
    if "--help" in argv or "-h" in argv:
        print(HELP)
        return
    targets = [argument for argument in argv if argument != "--explain"]
    if len(targets) != 1 or targets[0].startswith("-"):
        raise ValueError(f"usage: {USAGE}")
    flags = flags_for(targets[0])
    if "--explain" not in argv:
        print(as_arguments(flags))
        return
    table = Table("flag", "value", "reason", title=f"{targets[0]}: {variable_for(targets[0])}")
    for flag in flags:
        table.add_row(flag.name, flag.value, flag.reason)
    Console().print(table)
