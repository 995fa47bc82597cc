"""`virtue COMMAND ...`: finds the command's module, and turns a user's mistake into one line instead of a traceback."""

import importlib
import sys

from virtue_jax.compilation_cache import use_compilation_cache

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

NO_CACHE = "--no-compilation-cache"  # compile everything anew, and keep nothing of it


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `virtue` script. Exit status 2 = the command could not be carried out as given."""
    args = list(sys.argv[1:] if argv is None else argv)
    options = {"--traceback": False, NO_CACHE: False}
    while args and args[0] in options:
        options[args.pop(0)] = True
    traceback = options["--traceback"]
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return
    if args[0] not in COMMANDS:
        print(f"virtue: no command {args[0]!r}\n{_usage()}", file=sys.stderr)
        sys.exit(2)
    # What is compiled for chips that are not here cannot be read again here.
    use_compilation_cache(not options[NO_CACHE] and args[0] != "compile")
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
    options = f"[--traceback] [{NO_CACHE}]"
    return "\n".join([f"usage: virtue {options} COMMAND ... (COMMAND --help tells more)", "", *lines])
