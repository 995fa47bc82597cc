"""`virtue train --config configs/NAME.py --workdir DIR [--config.x=y ...]`"""

from absl import flags
from ml_collections import config_flags

from virtue_jax.config import from_dict
from virtue_jax.train.config import TrainConfig
from virtue_jax.train.loop import train

USAGE = "virtue train --config configs/NAME.py --workdir DIR [--config.x=y ...]"


def run(argv: list[str]) -> None:
    """Trains, or resumes where `--workdir` holds checkpoints of the same configuration."""
    values = flags.FlagValues()
    command = ["virtue train", *argv]
    config = config_flags.DEFINE_config_file(
        "config",
        None,
        "run file",
        flag_values=values,
        lock_config=False,
        accept_new_attributes=True,  # what the run file leaves at its default can be set too; typos fail in `from_dict`
        sys_argv=command,
    )
    workdir = flags.DEFINE_string("workdir", None, "where checkpoints, metrics and the model go", flag_values=values)
    if "--help" in argv or "-h" in argv:
        print(f"usage: {USAGE}\nEvery value of a TrainConfig can be set: --config.steps=100 --config.data.path=DIR")
        return
    try:
        rest = values(command)[1:]
        given = None if config.value is None else config.value.to_dict()
    except flags.Error as error:
        raise ValueError(f"{error}; usage: {USAGE}") from error
    except KeyError as error:
        raise ValueError(
            f"--config.x=y: the run file has no section {error.args[0]}; write one to set values in it"
        ) from error
    except Exception as error:  # a run file is a program, in which anything may go wrong
        said = " ".join(str(error).split())
        raise ValueError(f"the run file cannot be used: {type(error).__name__}: {said}") from error
    if rest or given is None or not workdir.value:
        raise ValueError(f"usage: {USAGE}" + (f"; not understood: {' '.join(rest)}" if rest else ""))
    if not flags.FLAGS.is_parsed():  # Grain's worker processes read absl's global flags
        flags.FLAGS.mark_as_parsed()
    train(from_dict(TrainConfig, given), workdir.value)
