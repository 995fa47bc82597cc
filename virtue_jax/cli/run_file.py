"""`--config FILE --config.x.y=value`: a run file and the values set on the command line, with mistakes as errors."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from virtue_jax.cli.parser import SETTING

if TYPE_CHECKING:
    from virtue_jax.train.step.config import TrainConfig


def train_config(args: argparse.Namespace) -> "TrainConfig":
    """The run that a line of `parser.add_run_file` describes.

    Raises:
        ValueError: as `read_run_file`; keys or values that a run does not have, with their dotted place.
    """
    from virtue_jax.config import from_dict
    from virtue_jax.train.step.config import TrainConfig

    return from_dict(TrainConfig, read_run_file(args.config, args.settings))


def read_run_file(path: str, settings: Sequence[str] = ()) -> dict:
    """The values of a run file ("NAME.py" or "NAME.py:VARIANT") with those of `settings` ("--config.x.y=value").

    Raises:
        ValueError: a value that cannot be set, or a run file that fails.
    """
    from absl import flags
    from ml_collections import config_flags

    line = ["virtue", f"--config={path}", *settings]
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file(
        "config",
        None,
        flag_values=values,
        lock_config=False,
        accept_new_attributes=True,  # what the run file leaves at its default can be set too; typos fail in `from_dict`
        sys_argv=line,
    )
    try:
        values(line)
        return config.value.to_dict()
    except flags.Error as error:
        message = str(error).rstrip()
        raise ValueError(message.splitlines()[-1] if "Traceback (most recent" in message else message) from error
    except KeyError as error:
        section = str(error.args[0]).strip("'")
        setting = next((word for word in settings if word.startswith(f"{SETTING}{section}.")), SETTING + section)
        raise ValueError(
            f"{setting}: the run file has no section {section!r}; write one to set its values ({{}} will do)"
        ) from error
    except Exception as error:  # a run file is a program, in which anything may go wrong
        message = " ".join(str(error).split())
        raise ValueError(f"the run file cannot be used: {type(error).__name__}: {message}") from error
