"""Write a run's data once, so that training reads records, not files: every source of the run goes into DIR/NAME,
images as they are, texts, prompts, in files for random access. DIR appears whole or not at all.

What is settled here, not when training: each source's limit, the kinds of prompt of SCaR's rows (box_weight ..., seed),
the grouping by image (share_images). At the end it prints the values that make the run read what was written.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from virtue_jax.cli.parser import add_run_file
from virtue_jax.cli.run_file import train_config

if TYPE_CHECKING:
    from rich.console import Console

    from virtue_jax.data.config import DataConfig
    from virtue_jax.data.formats.record_writer import PreparedSet
    from virtue_jax.train.step.config import TrainConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_file(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to write")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def run(args: argparse.Namespace) -> None:
    """Writes the sets, and prints what they hold and the values that make the run read them."""
    from virtue_jax.atomic_files import new_directory
    from virtue_jax.console import console

    config = train_config(args)
    _check_names(config.data)
    with new_directory(args.out, overwrite=args.overwrite) as directory:
        sets = _prepare_all(config, directory)
    _print(sets, Path(args.out), console())


def _check_names(data: "DataConfig") -> None:
    wrong = [name for name in data.sources if name != Path(name).name or name.startswith(".")]
    if wrong:
        raise ValueError(f"config.data.sources: {wrong[0]!r} cannot be the name of a folder; choose another")


def _prepare_all(config: "TrainConfig", directory: Path) -> "dict[str, PreparedSet]":
    from virtue_jax.cli.progress import progress_bar
    from virtue_jax.data.formats.record_writer import prepare
    from virtue_jax.data.sources.open_data import open_sources

    data, sets = config.data, {}
    for (name, settings), source in zip(data.sources.items(), open_sources(data, config.seed), strict=True):
        about = dataclasses.asdict(settings) | {"share_images": data.share_images, "seed": config.seed}
        folder = directory / name
        folder.mkdir()
        try:
            with progress_bar(name, len(source)) as done:
                sets[name] = prepare(source, folder, about=about, bad_rows=data.bad_rows, progress=done)
        except ValueError as error:
            raise ValueError(f"source {name!r}: {error}") from error
    return sets


def _print(sets: "dict[str, PreparedSet]", out: Path, screen: "Console") -> None:
    from rich.table import Table

    from virtue_jax.data.unreadable import QUARANTINE

    table = Table("source", "elements", "pairs", "images", "MiB", "left out")
    for name, written in sets.items():
        counts = (written.elements, written.pairs, written.images, round(written.bytes / 2**20, 1), len(written.bad))
        table.add_row(name, *(f"{count:,}" for count in counts))
    screen.print(table)
    for name, written in sets.items():
        if written.bad:
            where = out / name / QUARANTINE
            screen.print(f"{name}: {len(written.bad)} left out, each named in {where}", soft_wrap=True)
    values = {
        f"--config.data.sources.{name}.{key}": value
        for name in sets
        for key, value in (("kind", "prepared"), ("path", str(out / name)))
    }
    screen.print("To train on them:")
    screen.print(" ".join(f"{key}={value}" for key, value in values.items()), soft_wrap=True, highlight=False)
