"""What the commands' lines have in common: the parser, the run file with values set in it, options of every command."""

import argparse

SETTING = "--config."


class UsageError(ValueError):
    """A line that is no command: says what is wrong with it, and how the command is used."""

    def __init__(self, command: str, message: str, usage: str):
        super().__init__(f"{message}\n{usage.strip()}")
        self.command = command


class Parser(argparse.ArgumentParser):
    """argparse that raises `UsageError` in place of exiting. Options cannot be shortened: a new one breaks no line."""

    def __init__(self, **settings):
        shape = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, add_help=False, formatter_class=shape, **settings)

    def error(self, message: str):
        raise UsageError(self.prog, message, self.format_usage())


def add_run_file(parser: argparse.ArgumentParser) -> None:
    """`--config FILE --config.x.y=value`, for `run_file.train_config(args)` to read."""
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="run file, such as configs/NAME.py")
    parser.add_argument(
        f"{SETTING}PATH",
        action="append",
        default=[],
        dest="settings",
        metavar="VALUE",
        help=f"a value set in the run file, at its dotted place: {SETTING}steps=100; may be given again",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model that a command embeds with, and how."""
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="model directory")
    add("--compat", choices=("released", "paper"), help="behaviour (default: the model's own)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and arithmetic (float32)")
    add("--image-rows", type=positive, default=1, metavar="N", help="rows of images per call and device (1)")


def add_options_of_all(parser: argparse.ArgumentParser) -> None:
    """What every command takes, after its own options."""
    parser.add_argument(
        "--traceback", action="store_true", default=argparse.SUPPRESS, help="show where an error comes from"
    )
    parser.add_argument(
        "--no-compilation-cache",
        action="store_false",
        dest="compilation_cache",
        default=argparse.SUPPRESS,
        help="compile everything anew, and keep nothing of it in the user's cache folder",
    )
    parser.add_argument("-h", "--help", action="help", help="show this and end")


def parse(parser: Parser, command: Parser | None, line: list[str]) -> argparse.Namespace:
    """The namespace of a line; `settings` are the `--config.x.y=value` of a `command` that has a run file, as written.

    Raises:
        UsageError: the line is not one of `parser`'s.
    """
    settings = []
    if command is not None and command.get_default("settings") is not None:
        line, settings = _without_settings(line)
    args, rest = parser.parse_known_args(line)
    if rest:
        (command or parser).error(f"not understood: {' '.join(rest)}")
    if settings:
        args.settings = [*args.settings, *settings]
    return args


def _without_settings(line: list[str]) -> tuple[list[str], list[str]]:
    """The line without its `--config.x=y` and `--config.x y`, and those, all as `--config.x=y`."""
    rest, settings, words = [], [], list(line)
    while words:
        word = words.pop(0)
        if not word.startswith(SETTING):
            rest.append(word)
        elif "=" in word or not words or words[0].startswith("--"):
            settings.append(word)  # one without a value is refused where its type is known
        else:
            settings.append(f"{word}={words.pop(0)}")
    return rest, settings


def positive(text: str) -> int:
    """A whole number from 1, for `type=`."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a positive integer")
    return int(text)
