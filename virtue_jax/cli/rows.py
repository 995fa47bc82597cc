"""`virtue rows --config FILE`: the row groups that a run's data asks for, as a table and as values for its run file."""

from dataclasses import fields

from absl import flags
from rich.console import Console
from rich.table import Table

from virtue_jax.cli.run_file import read_run_file
from virtue_jax.config import from_dict
from virtue_jax.data.row_groups.choose import Chosen
from virtue_jax.data.row_groups.published import PUBLISHED
from virtue_jax.train.rows import choose, row_groups, stated_needs
from virtue_jax.train.step.config import TrainConfig
from virtue_jax.train.step.setup import with_attention

ROW_EFFICIENCY = 0.90  # real tokens / slots, below which the command warns
USAGE = (
    "virtue rows --config configs/NAME.py [--devices N] [--platform tpu|cuda|rocm|cpu] [--lengths scar|mmeb] "
    "[--config.x=y ...]"
)
HELP = f"""usage: {USAGE}
Reads image headers and texts of a sample of the run's data, or takes made-up lengths like SCaR-train's or MMEB-train's
(--lengths; the run file's model directory has to exist all the same), and searches for the row groups of least cost.
--devices: over how many devices rows are split (mesh axes data and fsdp); each group's rows divide by it.
--platform: of those devices; what numerics.attention 'auto' means there decides which lengths are fast."""


def run(argv: list[str]) -> None:
    """Prints the choice; changes nothing."""
    if "--help" in argv or "-h" in argv:
        print(HELP)
        return
    given, options = read_run_file("virtue rows", argv, USAGE, _define)
    if given is None:
        raise ValueError(f"usage: {USAGE}")
    config = with_attention(from_dict(TrainConfig, given), options.platform)
    needs, virtue = stated_needs(config, options.lengths)
    tell(config, choose(config, needs, virtue, shards=options.devices), Console())


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("devices", 1, "devices that rows are split over", lower_bound=1, flag_values=values)
    flags.DEFINE_enum("platform", "tpu", ["tpu", "cuda", "rocm", "cpu"], "of the devices", flag_values=values)
    flags.DEFINE_enum("lengths", "", ["", *PUBLISHED], "made-up lengths in place of the data's", flag_values=values)


def tell(config: TrainConfig, chosen: Chosen, console: Console) -> None:
    """The table, its figures, a warning where rows are not full, and values for a run file."""
    groups = row_groups(chosen)
    table = Table("group", "rows", "slots", "images", "patches", "real tokens", "real patches", "SAM runs used")
    for (name, group), seen in zip(groups.items(), chosen.figures.groups, strict=True):
        shape = group.shape
        used = seen.runs / seen.run_capacity if seen.run_capacity else 0
        told = (f"{shape.images}", f"{shape.vision_rows} x {shape.patches}") if shape.patches else ("", "")
        shares = (f"{seen.row_efficiency:.3f}", f"{seen.patch_efficiency:.3f}" if shape.patches else "", f"{used:.3f}")
        table.add_row(name, str(group.rows), str(shape.slots), *told, *shares)
    console.print(table)
    figures = chosen.figures
    console.print(
        f"{figures.pairs:.0f} of {config.batch_size} pairs a step; {figures.waiting:.1%} of the batch waits, "
        f"{figures.longest_wait} steps at most; row efficiency {figures.row_efficiency:.3f}, patch efficiency "
        f"{figures.patch_efficiency:.3f}; {chosen.cost / 1e12:.3g} TFLOP a pair"
    )
    if figures.row_efficiency < ROW_EFFICIENCY:
        console.print(_warning(config), soft_wrap=True, highlight=False)
    console.print('\n"rows": {', highlight=False)
    for name, group in groups.items():
        values = ", ".join(f'"{key}": {value!r}' for key, value in _given(group.shape).items())
        console.print(
            f'    "{name}": {{"shape": {{{values}}}, "rows": {group.rows}}},', soft_wrap=True, highlight=False
        )
    console.print("}", highlight=False)


def _warning(config: TrainConfig) -> str:
    """Why rows may be emptier than they need be, and what changes that."""
    pairs = config.batch_size // config.data.streams
    return (
        f"warning: row efficiency is under {ROW_EFFICIENCY:.2f}. Each of config.data.streams={config.data.streams} "
        f"streams packs {pairs} of the {config.batch_size} pairs of config.batch_size by itself; fewer streams (not "
        "fewer than processes), a larger batch or fewer --devices leave more to choose from"
    )


def _given(shape) -> dict:
    """The values that a run file has to name."""
    return {
        field.name: getattr(shape, field.name) for field in fields(shape) if getattr(shape, field.name) != field.default
    }
