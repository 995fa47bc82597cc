"""`virtue COMMAND ...`: finds the command's module, and turns a user's mistake into one line instead of a traceback."""

import importlib
import sys

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
    """Entry point of the `virtue` script. Exit status 2 = the command could not be carried out as given."""
    args = list(sys.argv[1:] if argv is None else argv)
    traceback = bool(args) and args[0] == "--traceback"
    args = args[traceback:]
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return
    if args[0] not in COMMANDS:
        print(f"virtue: no command {args[0]!r}\n{_usage()}", file=sys.stderr)
        sys.exit(2)
    command = importlib.import_module(f"virtue_jax.cli.{args[0]}")
    try:
        command.run(args[1:])
    except (ValueError, OSError, FloatingPointError) as error:
        if traceback:
            raise
        print(f"virtue {args[0]}: {error}\n(`virtue --traceback {args[0]} ...` shows where)", file=sys.stderr)
        sys.exit(2)


def _usage() -> str:
    lines = [f"  {name:8s} {what}" for name, what in COMMANDS.items()]
    return "\n".join(["usage: virtue [--traceback] COMMAND ... (COMMAND --help tells more)", "", *lines])
