"""Choose a run's row groups: reads image headers and texts of a sample of the run's data, or takes made-up lengths like
SCaR-train's or MMEB-train's (--lengths; the run file's model directory has to exist all the same), and searches for the
row groups of least cost. Prints them as a table and as values for the run file; changes nothing.
"""

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING

from virtue_jax.cli.parser import add_run_file, positive
from virtue_jax.cli.run_file import train_config

if TYPE_CHECKING:
    from rich.console import Console

    from virtue_jax.data.row_groups.choose import Chosen
    from virtue_jax.train.step.config import TrainConfig

ROW_EFFICIENCY = 0.90  # real tokens / slots, below which the command warns
PLATFORMS = ("tpu", "cuda", "rocm", "cpu")
LENGTHS = ("scar", "mmeb")  # of virtue_jax/data/row_groups/published.py, which takes seconds to import


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_run_file(parser)
    add(
        "--devices",
        type=positive,
        default=1,
        metavar="N",
        help="devices that rows are split over (mesh axes data and fsdp); each group's rows divide by it (1)",
    )
    add(
        "--platform",
        choices=PLATFORMS,
        default="tpu",
        help="of those devices; what numerics.attention 'auto' means there decides which lengths are fast (tpu)",
    )
    add("--lengths", choices=LENGTHS, default="", help="made-up lengths in place of the data's")


def run(args: argparse.Namespace) -> None:
    """Prints the choice; changes nothing."""
    from virtue_jax.console import console
    from virtue_jax.train.rows import choose, stated_needs
    from virtue_jax.train.step.setup import with_attention

    config = with_attention(train_config(args), args.platform)
    needs, virtue = stated_needs(config, args.lengths)
    tell(config, choose(config, needs, virtue, shards=args.devices), console())


def tell(config: "TrainConfig", chosen: "Chosen", screen: "Console") -> None:
    """The table, its figures, a warning where rows are not full, and values for a run file."""
    from rich.table import Table

    from virtue_jax.train.rows import row_groups

    groups = row_groups(chosen)
    table = Table("group", "rows", "slots", "images", "patches", "real tokens", "real patches", "SAM runs used")
    for (name, group), seen in zip(groups.items(), chosen.figures.groups, strict=True):
        shape = group.shape
        used = seen.runs / seen.run_capacity if seen.run_capacity else 0
        images = (f"{shape.images}", f"{shape.vision_rows} x {shape.patches}") if shape.patches else ("", "")
        shares = (f"{seen.row_efficiency:.3f}", f"{seen.patch_efficiency:.3f}" if shape.patches else "", f"{used:.3f}")
        table.add_row(name, str(group.rows), str(shape.slots), *images, *shares)
    screen.print(table)
    figures = chosen.figures
    screen.print(
        f"{figures.pairs:.0f} of {config.batch_size} pairs a step; {figures.waiting:.1%} of the batch waits, "
        f"{figures.longest_wait} steps at most; row efficiency {figures.row_efficiency:.3f}, patch efficiency "
        f"{figures.patch_efficiency:.3f}; {chosen.cost / 1e12:.3g} TFLOP a pair"
    )
    if figures.row_efficiency < ROW_EFFICIENCY:
        screen.print(_warning(config), soft_wrap=True, highlight=False)
    screen.print('\n"rows": {', highlight=False)
    for name, group in groups.items():
        values = ", ".join(f'"{key}": {value!r}' for key, value in _set_fields(group.shape).items())
        line = f'    "{name}": {{"shape": {{{values}}}, "rows": {group.rows}}},'
        screen.print(line, soft_wrap=True, highlight=False)
    screen.print("}", highlight=False)


def _warning(config: "TrainConfig") -> str:
    """Why rows may be emptier than they need be, and what changes that."""
    pairs = config.batch_size // config.data.streams
    return (
        f"warning: row efficiency is under {ROW_EFFICIENCY:.2f}. Each of config.data.streams={config.data.streams} "
        f"streams packs {pairs} of the {config.batch_size} pairs of config.batch_size by itself; fewer streams (not "
        "fewer than processes), a larger batch or fewer --devices leave more to choose from"
    )


def _set_fields(shape) -> dict:
    """The values that a run file has to name."""
    return {
        field.name: getattr(shape, field.name) for field in fields(shape) if getattr(shape, field.name) != field.default
    }
