"""What a study's figures say, in sentences that are made from them."""

import math
from collections.abc import Mapping, Sequence

from virtue_jax.aot.study.entry import Entry
from virtue_jax.aot.study.point import FULL, LOW, Point
from virtue_jax.aot.study.results import BOUNDS, DOES_NOT_FIT, FITS, Row, band, known_terms
from virtue_jax.aot.study.study_file import Study, series_of
from virtue_jax.aot.study.table import failures, short, spread

Pair = tuple[Point, Row]
LOW_EFFORT = (
    "{count} of {of} points are of low effort: they have no cycles, and their roofline is pessimistic, so that their "
    "MFU is a lower bound of the full effort's."
)
NAMES = {"roofline": "the roofline", "cycles": "the compiler's cycles"}
NAMED_TERMS = {"communication": "the network between chips", "dcn": "the network between slices"}


def answers(study: Study, rows: Sequence[Row], entries: Mapping[Point, Entry]) -> list[str]:
    """One line per series or pod, one on what low effort means, then one per point without a report."""
    pairs = list(zip(study.points, rows, strict=True))
    if study.kind == "grid":
        told = _fitting_batches(pairs) if study.x == "batch" else _best(pairs)
    else:
        told = _scaling(study, pairs, entries)
    low = [row for row in rows if row["effort"] == LOW and row["status"] in (FITS, DOES_NOT_FIT)]
    return (
        told
        + ([LOW_EFFORT.format(count=len(low), of=len(rows))] if low else [])
        + [f"**{line}**" for line in failures(rows)]
    )


def _scaling(study: Study, pairs: Sequence[Pair], entries: Mapping[Point, Entry]) -> list[str]:
    told = []
    for group in _groups(pairs, series_of):
        fitting = sorted((pair for pair in group if pair[1]["status"] == FITS), key=lambda pair: pair[0].chips)
        name = f"{group[0][0].model} on {group[0][0].chip}{_effort(group[0][0])}"
        if len({point.chips for point, _ in fitting}) < 2:
            told.append(f"{name}: {_count(fitting)} pod fits, so there is nothing to compare.")
            continue
        (first, _), (last, row) = fitting[0], fitting[-1]
        times, ratio = band(row, "efficiency"), last.chips / first.chips
        doubling = tuple(each ** (1 / math.log2(ratio)) for each in times)
        if study.kind == "weak":
            pace = f"each chip does {spread(times)} of the pairs a second that it does on the smallest"
            each = f"a doubling keeps {spread(doubling)} of a chip's pace"
        else:
            pace = f"a batch of {last.batch:,} is done {spread(tuple(ratio * t for t in times))} times sooner"
            each = f"a doubling of the chips speeds a step up {spread(tuple(2 * d for d in doubling))} times"
        told.append(
            f"{name}, {first.chips} to {last.chips} chips ({ratio:g} times): {pace}; {each}{_alone(row)}. "
            + _limit(*(known_terms(entries[each].report) for each in (first, last)), _scale(study, ratio))
        )
    return told


def _scale(study: Study, ratio: float) -> float:
    """What a term is multiplied by where scaling is perfect."""
    return 1.0 if study.kind == "weak" else 1 / ratio


def _limit(first: Mapping[str, float], last: Mapping[str, float], scale: float) -> str:
    """Which of the roofline's terms exceeds most what perfect scaling would leave of it."""
    excess = {name: last[name] - scale * first.get(name, 0.0) for name in last}
    worst = max(excess, key=excess.get)
    if excess[worst] < 0.005 * sum(last.values()):
        return "No term of the roofline grows by as much as 0.5 % of a step."
    name = NAMED_TERMS.get(worst, worst)
    return (
        f"What grows most is {name}: {short(last[worst])} s of a step of {short(sum(last.values()))} s, where perfect "
        f"scaling would leave {short(scale * first.get(worst, 0.0))} s."
    )


def _best(pairs: Sequence[Pair]) -> list[str]:
    """Of every model and pod, what is fastest among its points."""
    told = []
    for group in _groups(pairs, lambda point: (point.config, point.pod, point.batch, point.effort)):
        point = group[0][0]
        where = f"{point.model} on {point.pod}, batch {point.batch:,}{_effort(point)}"
        fitting = [pair for pair in group if pair[1]["status"] == FITS]
        misfits = [_choice(each) for each, row in group if row["status"] == DOES_NOT_FIT]
        without = f" {', '.join(misfits)} {'does' if len(misfits) == 1 else 'do'} not fit." if misfits else ""
        if not fitting:
            told.append(f"{where}: nothing fits.{without if misfits else ''}")
            continue
        if len(group) == 1:
            row = fitting[0][1]
            used = (
                "" if row["hbm_peak_gib"] is None else f" ({row['hbm_peak_gib']:.1f} of {row['hbm_size_gib']:.1f} GiB)"
            )
            told.append(f"{where}: **{_choice(point)}** fits{used}: {_figures(row)}.")
            continue
        if len(fitting) == 1:
            told.append(f"{where}: **{_choice(fitting[0][0])}** is all that fits.{without}")
            continue
        told.append(f"{where}: {_ranked(fitting)}{without}")
    return told


def _ranked(fitting: Sequence[Pair]) -> str:
    """The fastest by each bound, and by how much."""
    said = {}
    known = [bound for bound in BOUNDS if fitting[0][1][f"pairs_per_second_{bound}"] is not None]
    for bound in known:
        pace = f"pairs_per_second_{bound}"
        (best, first), (second, next_row), *_ = sorted(fitting, key=lambda pair: -pair[1][pace])
        said[bound] = (_choice(best), _choice(second), 100 * (first[pace] / next_row[pace] - 1))
    (best, second, by), (other, other_second, other_by) = said[known[-1]], said["roofline"]
    figures = _figures(next(row for point, row in fitting if _choice(point) == best))
    if known == ["roofline"]:
        return f"**{best}** is fastest ({figures}): {by:.1f} % ahead of {second}."
    if best == other:
        return (
            f"**{best}** is fastest ({figures}): {by:.1f} % ahead of {second} by {NAMES['cycles']}, "
            f"{other_by:.1f} % ahead of {other_second} by {NAMES['roofline']}."
        )
    return (
        f"the bounds disagree: **{best}** by {NAMES['cycles']} ({by:.1f} % ahead of {second}; {figures}), "
        f"**{other}** by {NAMES['roofline']} ({other_by:.1f} % ahead of {other_second})."
    )


def _figures(row: Row) -> str:
    return f"{spread(band(row, 'pairs_per_second'))} pairs/s, MFU {spread(band(row, 'mfu'))}{_alone(row)}"


def _alone(row: Row) -> str:
    return ", by the roofline only" if row["seconds_cycles"] is None else ""


def _effort(point: Point) -> str:
    return "" if point.effort == FULL else f", {point.effort} effort"


def _fitting_batches(pairs: Sequence[Pair]) -> list[str]:
    told = []
    for group in _groups(pairs, lambda point: (*series_of(point), point.pod)):
        point = group[0][0]
        where = f"{point.model} on {point.pod} ({_choice(point)}{_effort(point)})"
        known = sorted((pair for pair in group if pair[1]["hbm_size_gib"] is not None), key=lambda p: p[0].batch)
        fitting = [pair for pair in known if pair[1]["status"] == FITS]
        misfits = [each.batch for each, row in known if row["status"] == DOES_NOT_FIT]
        if not fitting:
            told.append(f"{where}: none of the batches asked for fits.")
            continue
        largest, row = fitting[-1]
        used = f"{row['hbm_peak_gib']:.1f} of {row['hbm_size_gib']:.1f} GiB"
        beyond = f"{min(misfits):,} do not" if misfits else "no larger batch was asked for"
        told.append(f"{where}: **{largest.batch:,}** pairs a step fit ({used}); {beyond}.{_growth(known)}")
    return told


def _growth(known: Sequence[Pair]) -> str:
    """Memory for further pairs, by the two largest batches; or how they are made to fit, where that is not alike."""
    known = [pair for pair in known if pair[1]["hbm_peak_gib"] is not None]
    if len(known) < 2:
        return ""
    (small, less), (large, more) = known[-2:]
    if large.batch == small.batch:
        return ""
    ways = [f"remat {row['remat']} and {_micro_batches(row)}" for row in (less, more)]
    if ways[0] != ways[1]:
        return f" {small.batch:,} take {ways[0]}; {large.batch:,} {ways[1]}."
    grown = more["hbm_peak_gib"] - less["hbm_peak_gib"]
    each = 1024 * grown / (large.batch - small.batch) * 1024
    return f" From {small.batch:,} to {large.batch:,} it is {grown:.2f} GiB a chip, {each:.0f} MiB per 1,024 pairs."


def _choice(point: Point) -> str:
    """What sets a point apart from others on the same pod."""
    values = [f"{path.split('.')[-1]}={value}" for path, value in point.overrides]
    return ", ".join([point.split, *values])


def _micro_batches(row: Row) -> str:
    return f"{row['micro_batches']} micro-batch{'' if row['micro_batches'] == 1 else 'es'}"


def _groups(pairs: Sequence[Pair], key) -> list[list[Pair]]:
    groups: dict = {}
    for pair in pairs:
        groups.setdefault(key(pair[0]), []).append(pair)
    return list(groups.values())


def _count(fitting: Sequence[Pair]) -> str:
    return "one" if fitting else "no"
