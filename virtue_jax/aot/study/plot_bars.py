"""Figures of points side by side, one bar a point, the first on top."""

from collections.abc import Mapping, Sequence

from virtue_jax.aot.study.plot_lines import canvas
from virtue_jax.aot.study.table import short, spread

GIB = 2**30
_HEIGHT, _ROOM = 0.34, 1.5  # inches of a bar, and of everything else
Bar = tuple[str, str, str]  # label, group (one colour), what to say where there is no bar


def band_bars(
    bars: Sequence[Bar],
    bands: Sequence[tuple[float, ...]],
    marks: Sequence[float | None],
    heads: tuple[str, str],
    unit: str,
):
    """From the lower to the upper bound; of a single bound, the roofline's, a circle; marks: calibrated figures."""
    figure, axes = _axes(bars, heads)
    top = max([high for each in bands if each for high in each] + [mark for mark in marks if mark])
    for i, ((_, _, said), band, mark) in enumerate(zip(bars, bands, marks, strict=True)):
        if not band:
            _say(axes, i, said)
            continue
        low, high = band[0], band[-1]
        if len(band) == 1:
            axes.plot(low, i, "o", color=_colour(bars, i), markersize=8)
            axes.annotate(short(low), (low, i), (8, 0), **_BESIDE)
            continue
        width = max(high - low, 0.004 * top)  # bounds that are alike still show
        axes.barh(i, width, left=low, color=_colour(bars, i), height=0.55)
        axes.annotate(spread(band), (low + width, i), (5, 0), **_BESIDE)
        if mark is not None:
            axes.plot(mark, i, "D", color="black", markersize=5)
    axes.set_xlim(0, 1.25 * top)
    lengths = {len(band) for band in bands}
    told = ["bar: cycles .. roofline"] if 2 in lengths else []
    told += ["circle: roofline only (low effort)"] if 1 in lengths else []
    told += ["diamond: calibrated"] if any(mark for mark in marks) else []
    axes.set_xlabel(f"{unit} ({', '.join(told)})")
    return figure


def share_bars(bars: Sequence[Bar], shares: Sequence[float | None], heads: tuple[str, str]):
    """Shares of a step, in percent."""
    figure, axes = _axes(bars, heads)
    for i, ((_, _, said), share) in enumerate(zip(bars, shares, strict=True)):
        if share is None:
            _say(axes, i, said)
            continue
        axes.barh(i, 100 * share, color=_colour(bars, i), height=0.55)
        axes.annotate(f"{100 * share:.1f} %", (100 * share, i), (5, 0), **_BESIDE)
    axes.set_xlim(0, max(1.25 * 100 * max(share for share in shares if share is not None), 1.0))
    axes.set_xlabel("share of the roofline's seconds (%)")
    return figure


def stacked_bars(
    bars: Sequence[Bar],
    stacks: Sequence[Mapping[str, float] | None],
    strokes: Sequence[tuple[float | None, str] | None],
    heads: tuple[str, str],
    unit: str,
):
    """Parts by kind, one after the other; strokes: a place to mark, if any, and what to say to the right of it all."""
    figure, axes = _axes(bars, heads)
    kinds = list(dict.fromkeys(kind for stack in stacks if stack for kind in stack))
    colours = {kind: f"C{n}" for n, kind in enumerate(kinds)} | {REST: "0.75"}
    top = 0.0
    for i, ((_, _, said), stack, stroke) in enumerate(zip(bars, stacks, strokes, strict=True)):
        if stack is None or stroke is None:
            _say(axes, i, said)
            continue
        left = 0.0
        for kind, size in stack.items():
            axes.barh(i, size, left=left, color=colours[kind], height=0.55)
            left += size
        at, text = stroke
        if at is not None:
            axes.plot([at, at], [i - 0.42, i + 0.42], color="black", linewidth=2)
        end = left if at is None else max(left, at)
        axes.annotate(text + (f", {said}" if said else ""), (end, i), (5, 0), **_BESIDE)
        top = max(top, end)
    axes.set_xlim(0, 1.3 * top)
    axes.set_xlabel(unit)
    from matplotlib.patches import Patch

    handles = [Patch(color=colours[kind], label=kind) for kind in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=8, frameon=False)
    return figure


REST = "more at the peak"


def memory_parts(memory: Mapping) -> dict[str, float]:
    """GiB by kind, which come to the peak; of a peak that the compiler does not say, what stays alone."""
    resident = {kind: size / GIB for kind, size in (memory.get("resident") or {}).items()}
    rest = 0.0 if memory["peak"] is None else max(memory["peak"] / GIB - sum(resident.values()), 0.0)
    return resident | {REST: rest}


_BESIDE = {"textcoords": "offset points", "va": "center", "ha": "left", "fontsize": 8}


def _axes(bars: Sequence[Bar], heads: tuple[str, str]):
    figure, axes = canvas(8.4, _HEIGHT * len(bars) + _ROOM, heads)
    axes.set_yticks(range(len(bars)), [label for label, _, _ in bars], fontsize=8)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    for i in range(1, len(bars)):
        if bars[i][1] != bars[i - 1][1]:
            axes.axhline(i - 0.5, color="0.85", linewidth=0.8)
    return figure, axes


def _colour(bars: Sequence[Bar], i: int) -> str:
    groups = list(dict.fromkeys(group for _, group, _ in bars))
    return f"C{groups.index(bars[i][1]) % 10}"


def _say(axes, i: int, said: str) -> None:
    axes.annotate(
        said, (0, i), (5, 0), textcoords="offset points", va="center", fontsize=8, color="0.35", style="italic"
    )
