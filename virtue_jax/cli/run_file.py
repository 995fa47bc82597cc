"""`--config FILE --config.x=y`: a run file and the values set on the command line, with a user's mistakes as errors."""

from collections.abc import Callable

from absl import flags
from ml_collections import config_flags


def read_run_file(
    command: str, argv: list[str], usage: str, define: Callable[[flags.FlagValues], None] = lambda values: None
) -> tuple[dict | None, flags.FlagValues]:
    """The run file's values (None without `--config`), and the command's other flags, which `define` has added.

    Raises:
        ValueError: a flag that does not exist, a value that cannot be set, a run file that fails, or further arguments.
    """
    values = flags.FlagValues()
    line = [command, *argv]
    config = config_flags.DEFINE_config_file(
        "config",
        None,
        "run file",
        flag_values=values,
        lock_config=False,
        accept_new_attributes=True,  # what the run file leaves at its default can be set too; typos fail in `from_dict`
        sys_argv=line,
    )
    define(values)
    try:
        rest = values(line)[1:]
        given = None if config.value is None else config.value.to_dict()
    except flags.Error as error:
        said = str(error).rstrip().splitlines()[-1] if "Traceback (most recent" in str(error) else str(error)
        raise ValueError(f"{said}; usage: {usage}") from error
    except KeyError as error:
        section = str(error.args[0]).strip("'")
        flag = next((word for word in argv if word.startswith(f"--config.{section}.")), f"--config.{section}")
        raise ValueError(
            f"{flag}: the run file has no section {section!r}; write one to set its values ({{}} will do)"
        ) from error
    except Exception as error:  # a run file is a program, in which anything may go wrong
        said = " ".join(str(error).split())
        raise ValueError(f"the run file cannot be used: {type(error).__name__}: {said}") from error
    if rest:
        raise ValueError(f"usage: {usage}; not understood: {' '.join(rest)}")
    return given, values
