"""`virtue prepare --config FILE --out DIR`: a run's data written once, so that training reads records, not files."""

import dataclasses
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from virtue_jax.atomic_files import new_directory
from virtue_jax.cli.progress import progress_bar
from virtue_jax.cli.run_file import read_run_file
from virtue_jax.config import from_dict
from virtue_jax.data.config import DataConfig
from virtue_jax.data.formats.record_writer import PreparedSet, prepare
from virtue_jax.data.sources.open_data import open_sources
from virtue_jax.data.unreadable import QUARANTINE
from virtue_jax.train.step.config import TrainConfig

USAGE = "virtue prepare --config configs/NAME.py --out DIR [--overwrite] [--config.x=y ...]"
HELP = f"""usage: {USAGE}
Writes every source of the run into DIR/NAME: images as they are, texts, prompts, in files for random access.
DIR appears whole or not at all. What is settled here, not when training: each source's limit, the kinds of prompt of
SCaR's rows (box_weight ..., seed), the grouping by image (share_images)."""


def run(argv: list[str]) -> None:
    """Writes the sets, and prints what they hold and the values that make the run read them."""
    if "--help" in argv or "-h" in argv:
        print(HELP)
        return
    given, options = read_run_file("virtue prepare", argv, USAGE, _define)
    if given is None or not options.out:
        raise ValueError(f"usage: {USAGE}")
    config = from_dict(TrainConfig, given)
    _check_names(config.data)
    with new_directory(options.out, overwrite=options.overwrite) as directory:
        made = _prepare_all(config, directory)
    _tell(made, Path(options.out), Console())


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("out", None, "directory to write", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "replace what is there", flag_values=values)


def _check_names(data: DataConfig) -> None:
    wrong = [name for name in data.sources if name != Path(name).name or name.startswith(".")]
    if wrong:
        raise ValueError(f"config.data.sources: {wrong[0]!r} cannot be the name of a folder; choose another")


def _prepare_all(config: TrainConfig, directory: Path) -> dict[str, PreparedSet]:
    data, made = config.data, {}
    for (name, given), source in zip(data.sources.items(), open_sources(data, config.seed), strict=True):
        about = dataclasses.asdict(given) | {"share_images": data.share_images, "seed": config.seed}
        folder = directory / name
        folder.mkdir()
        try:
            with progress_bar(name, len(source)) as done:
                made[name] = prepare(source, folder, about=about, bad_rows=data.bad_rows, progress=done)
        except ValueError as error:
            raise ValueError(f"source {name!r}: {error}") from error
    return made


def _tell(made: dict[str, PreparedSet], out: Path, console: Console) -> None:
    table = Table("source", "elements", "pairs", "images", "MiB", "left out")
    for name, one in made.items():
        counts = (one.elements, one.pairs, one.images, round(one.bytes / 2**20, 1), len(one.bad))
        table.add_row(name, *(f"{count:,}" for count in counts))
    console.print(table)
    for name, one in made.items():
        if one.bad:
            console.print(f"{name}: {len(one.bad)} left out, each named in {out / name / QUARANTINE}", soft_wrap=True)
    values = {
        f"--config.data.sources.{name}.{key}": value
        for name in made
        for key, value in (("kind", "prepared"), ("path", str(out / name)))
    }
    console.print("To train on them:")
    console.print(" ".join(f"{key}={value}" for key, value in values.items()), soft_wrap=True, highlight=False)
