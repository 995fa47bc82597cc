"""Figures over chips or batch, one line or band per series."""

from collections.abc import Sequence
from dataclasses import dataclass

from virtue_jax.aot.study.results import FITS

AXES = {"chips": "chips", "batch": "global batch (pairs a step: a query's negatives)"}


# (whether all points have cycles, whether any has) -> what circles are
_CIRCLES = {
    (True, True): "full circles: roofline; empty ones: the compiler's cycles",
    (False, True): "full circles: roofline; empty ones: the compiler's cycles (none at low effort)",
    (False, False): "circles: roofline only (low effort)",
}


@dataclass(frozen=True)
class Line:
    """points: (x, values, the point's status), by x. colour: of matplotlib's cycle, one in all plots of a study."""

    label: str
    points: Sequence[tuple[int, tuple[float, ...], str]]
    colour: int

    @property
    def xs(self) -> list[int]:
        return [x for x, _, _ in self.points]


def canvas(width: float, height: float, heads: tuple[str, str]):
    """(figure, axes) with a title and, smaller, the study's question."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here: matplotlib takes a second
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(heads[0], fontsize=12, fontweight="bold", pad=20)
    axes.text(0.5, 1.015, heads[1], transform=axes.transAxes, ha="center", fontsize=9, color="0.35")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def band_lines(
    lines: Sequence[Line], heads: tuple[str, str], *, x: str, y: str, log: bool = False, ideal: float | None = None
):
    """Each line's values are (roofline, cycles): a line through each, and a stroke between them at every x; or, at low
    effort, (roofline, None)."""
    figure, axes = canvas(7.6, 4.6, heads)
    for n, line in enumerate(lines):
        xs, colour = _aside(line, n, len(lines)), f"C{line.colour}"
        both = [(at, *each) for at, (_, each, _) in zip(xs, line.points, strict=True) if each[1] is not None]
        if both:
            at, roofline, cycles = zip(*both, strict=True)
            axes.vlines(at, roofline, cycles, color=colour, alpha=0.35, linewidth=4)
            axes.plot(at, cycles, "--o", color=colour, markersize=7, linewidth=1, markerfacecolor="white")
        axes.plot(
            xs,
            [each[0] for _, each, _ in line.points],
            "-o",
            color=colour,
            markersize=4,
            linewidth=1.4,
            label=line.label,
        )
    if ideal is not None:
        axes.axhline(ideal, color="black", linestyle=":", linewidth=1, label="ideal")
    _x_axis(axes, lines, x)
    values = [value for line in lines for _, each, _ in line.points for value in each if value is not None]
    if log:
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    elif ideal is not None:
        axes.set_ylim(min(0.8, 0.95 * min(values)), 1.03 * max(ideal, *values))
    else:
        axes.set_ylim(0, 1.12 * max(values))
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    known = {each[1] is not None for line in lines for _, each, _ in line.points}
    _legend(figure, axes, _CIRCLES[min(known), max(known)])
    return figure


def share_lines(lines: Sequence[Line], heads: tuple[str, str], *, x: str, y: str, limit: bool = True):
    """Values are (part, whole) or (share,); limit: whether 100 % is a line that must not be crossed."""
    figure, axes = canvas(7.6, 4.6, heads)
    top = 0.0
    for n, line in enumerate(lines):
        xs, colour = _aside(line, n, len(lines)), f"C{line.colour}"
        shares = [100 * each[0] / (each[1] if len(each) > 1 else 1.0) for _, each, _ in line.points]
        axes.plot(xs, shares, "-", color=colour, linewidth=1.4, label=line.label)
        for at, share, (_, values, status) in zip(xs, shares, line.points, strict=True):
            axes.plot(at, share, "o" if status == FITS else "x", color=colour, markersize=6)
            if len(values) > 1:
                text = {"textcoords": "offset points", "fontsize": 8, "ha": "center", "color": colour}
                axes.annotate(f"{values[0]:.1f}", (at, share), (0, 6), **text)
        top = max(top, *shares)
    if limit:
        axes.axhline(100, color="black", linestyle=":", linewidth=1, label="all there is")
        top = max(top, 100.0)
    _x_axis(axes, lines, x)
    axes.set_ylim(0, 1.15 * top or 1.0)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    _legend(figure, axes, "figures: GiB a chip; x: does not fit" if limit else "")
    return figure


def _aside(line: Line, n: int, of: int) -> list[float]:
    """Where the n-th line's points are drawn, so that those of other lines at the same x can be told from them."""
    return [at * 2 ** (0.06 * (n - (of - 1) / 2)) for at in line.xs]


def _x_axis(axes, lines: Sequence[Line], x: str) -> None:
    ticks = sorted({at for line in lines for at in line.xs})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    if len(ticks) == 1:
        axes.set_xlim(ticks[0] / 2, ticks[0] * 2)
    axes.set_xlabel(AXES[x])


def _legend(figure, axes, title: str) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = min(4, len(labels))
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns,
        fontsize=8,
        title=title,
        title_fontsize=8,
        frameon=False,
    )
