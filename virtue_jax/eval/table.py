"""Results as a table on the console."""

from rich.console import Console
from rich.table import Table

from virtue_jax.eval.result import EvalResult, ModeResult
from virtue_jax.eval.task import Presentation


def print_table(result: EvalResult, shown: Presentation, console: Console) -> None:
    """The headline metric in percent, one row per way of asking: overall, by data set where there are several, and by
    type of distractor."""
    first = next(iter(result.results.values()))
    datasets = list(first.datasets) if len(first.datasets) > 1 else []
    table = Table(title=shown.title)
    table.add_column("query")
    for name in ["all", *datasets, *(f"vs {shown.types.get(kind, kind)}" for kind in first.types), "questions"]:
        table.add_column(name, justify="right")
    for mode, found in result.results.items():
        values = [found.metrics.get(result.headline)]
        values += [_value(found, "datasets", name, result.headline) for name in datasets]
        values += [_value(found, "types", kind, result.headline) for kind in first.types]
        table.add_row(shown.modes.get(mode, mode), *map(_percent, values), str(found.questions))
    console.print(table)
    if result.left_out:
        console.print(f"{result.left_out} questions could not be read and are left out", soft_wrap=True)


def _value(found: ModeResult, part: str, name: str, metric: str) -> float | None:
    scores = getattr(found, part).get(name)
    return None if scores is None else scores.metrics.get(metric)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
