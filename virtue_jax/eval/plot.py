"""Results as a picture."""

from pathlib import Path

from virtue_jax.eval.result import EvalResult
from virtue_jax.eval.task import Presentation


def plot_result(result: EvalResult, shown: Presentation, path: Path) -> None:
    """PNG: bars of the headline metric per way of asking (left) and against each type of distractor (right), chance as
    a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here: matplotlib takes a second
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    whole, by_type = figure.subplots(1, 2, width_ratios=(2, 3), sharey=True)
    names = [shown.modes.get(mode, mode) for mode in result.results]
    kinds = list(next(iter(result.results.values())).types)
    width = 0.8 / len(names)
    for i, (name, found) in enumerate(zip(names, result.results.values(), strict=True)):
        value = 100 * (found.metrics.get(result.headline) or 0.0)
        whole.bar(i, value, color=f"C{i}")
        whole.annotate(f"{value:.1f}", (i, value), ha="center", va="bottom")
        places = [k + width * (i - (len(names) - 1) / 2) for k in range(len(kinds))]
        scores = [found.types.get(kind) for kind in kinds]
        heights = [100 * (scores.metrics.get(result.headline) or 0.0) if scores else 0.0 for scores in scores]
        by_type.bar(places, heights, width, color=f"C{i}", label=name)
    whole.set_xticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names])
    whole.set(title="all candidates", ylabel=f"{result.headline} (%)", ylim=(0, 105))
    by_type.set_xticks(range(len(kinds)), [f"{shown.types.get(kind, kind)} swapped" for kind in kinds])
    by_type.set_title("against one type of distractor")
    for axes, chance, label in ((whole, shown.chance, None), (by_type, shown.chance_by_type, "chance")):
        if chance is not None:
            axes.axhline(100 * chance, color="black", linestyle=":", linewidth=1, label=label)
    figure.legend(fontsize="small", loc="outside lower center", ncols=5)
    figure.suptitle(shown.subtitle or shown.title)
    figure.savefig(path, dpi=120)
