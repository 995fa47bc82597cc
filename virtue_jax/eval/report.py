"""A SCaR report as people read it: a table on the console and a plot."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

NAMES = {
    "prompt": "true prompt",
    "none": "no prompt",
    "wrong": "another's prompt",
    "crop": "crop instead",
}
# SCaR's names for what a distractor swaps, in a word; others stand as they are.
SWAPPED = {"global_context": "scene", "background_relation": "relation", "object_swap": "object"}
CHANCE, CHANCE_BY_TYPE = 0.1, 0.25


def print_report(report: dict, console: Console) -> None:
    """Hit@1 in percent, one row per way of asking."""
    first = next(iter(report.values()))
    table = Table(title="SCaR, hit@1 in percent (chance 10; by distractor type 25)")
    table.add_column("query")
    columns = [
        "all",
        *(first["datasets"] if len(first["datasets"]) > 1 else ()),
        *(f"vs {SWAPPED.get(t, t)}" for t in first["types"]),
    ]
    for name in [*columns, "questions"]:
        table.add_column(name, justify="right")
    for mode, result in report.items():
        values = [result["hit@1"]]
        if len(first["datasets"]) > 1:
            values += [result["datasets"].get(name, {}).get("hit@1") for name in first["datasets"]]
        values += [result["types"].get(kind, {}).get("hit@1") for kind in first["types"]]
        table.add_row(NAMES[mode], *map(_percent, values), str(result["questions"]))
    console.print(table)


def plot_report(report: dict, path: Path) -> None:
    """PNG: bars of hit@1 per way of asking (left) and against each distractor type (right), chance as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here: matplotlib takes a second
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    whole, by_type = figure.subplots(1, 2, width_ratios=(2, 3), sharey=True)
    for i, (mode, result) in enumerate(report.items()):
        value = 100 * (result["hit@1"] or 0.0)
        whole.bar(i, value, color=f"C{i}")
        whole.annotate(f"{value:.1f}", (i, value), ha="center", va="bottom")
        kinds = list(result["types"])
        width = 0.8 / len(report)
        places = [k + width * (i - (len(report) - 1) / 2) for k in range(len(kinds))]
        heights = [100 * (result["types"][kind]["hit@1"] or 0.0) for kind in kinds]
        by_type.bar(places, heights, width, color=f"C{i}", label=NAMES[mode])
    whole.set_xticks(range(len(report)), [NAMES[mode].replace(" ", "\n", 1) for mode in report])
    whole.axhline(100 * CHANCE, color="black", linestyle=":", linewidth=1)
    whole.set(title="all ten candidates", ylabel="hit@1 (%)", ylim=(0, 105))
    kinds = list(next(iter(report.values()))["types"])
    by_type.set_xticks(range(len(kinds)), [f"{SWAPPED.get(kind, kind)} swapped" for kind in kinds])
    by_type.axhline(100 * CHANCE_BY_TYPE, color="black", linestyle=":", linewidth=1, label="chance")
    by_type.set_title("against one type of distractor")
    figure.legend(fontsize="small", loc="outside lower center", ncols=5)
    figure.suptitle("SCaR: does the visual prompt find the caption?")
    figure.savefig(path, dpi=120)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
