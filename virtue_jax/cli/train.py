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
    config = config_flags.DEFINE_config_file("config", None, "run file", flag_values=values)
    workdir = flags.DEFINE_string("workdir", None, "where checkpoints, metrics and the model go", flag_values=values)
    if "--help" in argv or "-h" in argv:
        print(f"usage: {USAGE}\nEvery value of the run file can be set: --config.steps=100 --config.data.path=DIR")
        return
    try:
        rest = values(["virtue train", *argv])[1:]
    except flags.Error as error:
        raise ValueError(f"{error}\nusage: {USAGE}") from error
    if rest or config.value is None or not workdir.value:
        raise ValueError(f"usage: {USAGE}" + (f"; not understood: {' '.join(rest)}" if rest else ""))
    if not flags.FLAGS.is_parsed():  # Grain's worker processes read absl's global flags
        flags.FLAGS.mark_as_parsed()
    train(from_dict(TrainConfig, config.value.to_dict()), workdir.value)
