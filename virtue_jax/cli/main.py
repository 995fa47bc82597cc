"""`virtue COMMAND ...`: finds the command's module, and turns a user's mistake into one line instead of a traceback.

A command is a module of this folder: its docstring is the text of `--help`, `add_arguments(parser)` declares its
options and `run(args)` carries it out. What takes long to import (jax, transformers) is imported by `run`.
"""

import importlib
import importlib.metadata
import os
import select
import sys

from virtue_jax.cli.parser import Parser, UsageError, add_options_of_all, parse
from virtue_jax.compilation_cache import use_compilation_cache
from virtue_jax.exit_status import INTERRUPTED, REFUSED, UNREAD

COMMANDS = {
    "scenes": "make SCaR-like images and parquet files, no download needed",
    "train": "train from a run file (configs/*.py)",
    "prepare": "write a run's data once, in files made for training",
    "rows": "choose a run's row groups from the lengths of its data",
    "compile": "compile a run's step for a TPU that is not there: memory, exchange, predicted time",
    "flags": "compiler flags for a kind of chip, for the environment of `virtue train`",
    "scale": "sweeps of `virtue compile`: tables, plots, a page; calibration by measured steps",
    "eval": "evaluate a model on SCaR",
    "embed": "embed the lines of a JSONL file",
}


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `virtue` script; how it ends is a number of `exit_status.py`."""
    line = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch: none is needed
    try:
        try:
            _carry_out(line)
        finally:
            if sys.stdout is not None:  # None where the shell has closed it: `>&-`
                sys.stdout.flush()
    except UsageError as error:
        print(f"{error.command}: {error}\n(`{error.command} --help` tells what each is)", file=sys.stderr)
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        if "--traceback" in line:
            raise
        print(f"virtue {_command_of(line)}: stopped by Ctrl-C", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, OSError, FloatingPointError) as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to be written goes nowhere
            sys.exit(UNREAD)
        if "--traceback" in line:
            raise
        command = _command_of(line)
        print(f"virtue {command}: {error}\n(`virtue --traceback {command} ...` shows where)", file=sys.stderr)
        sys.exit(REFUSED)


def _carry_out(line: list[str]) -> None:
    parser, command = _parsers(_command_of(line))
    args = parse(parser, command, line)
    if args.version:
        print("\n".join(f"{name} {_version(name)}" for name in ("virtue_jax", "jax", "flax")))
    elif args.command is None:
        parser.print_help()
    else:
        # What is compiled for chips that are not here cannot be read again here.
        use_compilation_cache(args.compilation_cache and args.command != "compile")
        args.run(args)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "(not installed)"


def _command_of(line: list[str]) -> str:
    """The first word that is no option; those before a command have no values."""
    return next((word for word in line if not word.startswith("-")), "")


def _parsers(name: str) -> tuple[Parser, Parser | None]:
    """The parser of all lines, and the one of the command `name`: no other module is imported."""
    parser = Parser(prog="virtue", description="VIRTUE in JAX: make data, train, embed, evaluate.")
    parser.add_argument("--version", action="store_true", help="show the versions of the package, jax and flax")
    parser.set_defaults(traceback=False, compilation_cache=True)
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", help="COMMAND --help tells more")
    command = None
    for title, purpose in COMMANDS.items():
        subparser = commands.add_parser(title, help=purpose)
        if title == name:
            module, command = importlib.import_module(f"virtue_jax.cli.{name}"), subparser
            command.description = module.__doc__
            command.set_defaults(run=module.run)
            module.add_arguments(command)
            add_options_of_all(command)
    add_options_of_all(parser)
    if name and command is None:
        parser.error(f"no command {name!r}; there are {', '.join(COMMANDS)}")
    return parser, command


def _output_is_closed() -> bool:
    """Whether nobody can read what this process prints any more."""
    state = select.poll()
    state.register(sys.stdout.fileno(), 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in state.poll(0))
