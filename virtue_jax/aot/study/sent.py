"""What a step sends, term by term: the compiled program's collectives, on the largest pod of every model and mesh."""

from collections.abc import Mapping, Sequence

from virtue_jax.aot.study.entry import Entry
from virtue_jax.aot.study.page_text import SENT
from virtue_jax.aot.study.point import FULL, Point
from virtue_jax.aot.study.results import GIB
from virtue_jax.aot.study.table import NOTHING, short

MOST = 10  # lines of a table; the rest is summed up


def sent_tables(entries: Mapping[Point, Entry]) -> str:
    """A Markdown section; "" where no report has collectives."""
    largest: dict[tuple, Point] = {}
    for point, entry in entries.items():
        if entry.report is not None and entry.report.get("collectives"):
            key = (point.config, point.split)
            if key not in largest or point.chips > largest[key].chips:
                largest[key] = point
    if not largest:
        return ""
    parts = [SENT]
    for point in largest.values():
        effort = "" if point.effort == FULL else f" ({point.effort} effort)"
        parts += [
            f"**{point.model} on {point.pod}, batch {point.batch:,}, {point.split}**{effort}",
            _table(entries[point].report),
        ]
    return "\n\n".join(parts)


def _table(report: dict) -> str:
    lines = sorted(_summed(report["collectives"]).items(), key=lambda item: -item[1][1])
    shown = [_line(*key, *figures) for key, figures in lines[:MOST]]
    if len(lines) > MOST:
        rest = [figures for _, figures in lines[MOST:]]
        shown.append(_line(f"{len(rest)} more", "", "", "", "", "", *map(sum, zip(*rest, strict=True))))
    heads = ("what", "kind", "axis", "network", "stage", "overlapped", "count", "MiB a chip", "ms")
    rule = ["---"] * 6 + ["---:"] * 3
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, rule, *shown])


def _summed(collectives: Sequence[dict]) -> dict[tuple, tuple[float, float, float]]:
    """{(what, kind, axis, network, stage, overlapped): (count, bytes, seconds)}."""
    found: dict[tuple, tuple[float, float, float]] = {}
    for each in collectives:
        overlapped = "yes" if each["asynchronous"] else "no"
        key = (each.get("what") or "", each["kind"], each["axis"], each["network"], each["stage"], overlapped)
        count, size, seconds = found.get(key, (0, 0, 0))
        found[key] = (count + each["count"], size + each["bytes"], seconds + each.get("seconds", 0.0))
    return found


def _line(*cells) -> list[str]:
    *texts, count, size, seconds = cells
    numbers = [short(count), short(size / GIB * 1024), short(1000 * seconds) if seconds else NOTHING]
    return [*(str(text).replace("|", "/").replace("\n", " ") for text in texts), *numbers]
