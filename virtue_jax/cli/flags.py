"""Print the compiler flags for a kind of chip, as one line for the environment of `virtue train`:

export LIBTPU_INIT_ARGS="$(virtue flags v6e)"     TPUs; an empty line where libtpu's own choices are kept
export XLA_FLAGS="$(virtue flags gpu)"            GPUs
"""

import argparse

from virtue_jax.aot.xla_flags import FLAGS, as_arguments, flags_for, variable_for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help=f"one of {', '.join(FLAGS)}")
    parser.add_argument("--explain", action="store_true", help="a table with the reason of each instead")


def run(args: argparse.Namespace) -> None:
    """Prints them.

    Raises:
        ValueError: no such target.
    """
    from rich.table import Table

    from virtue_jax.console import console

    flags = flags_for(args.target)
    if not args.explain:
        print(as_arguments(flags))
        return
    table = Table("flag", "value", "reason", title=f"{args.target}: {variable_for(args.target)}")
    for flag in flags:
        table.add_row(flag.name, flag.value, flag.reason)
    console().print(table)
