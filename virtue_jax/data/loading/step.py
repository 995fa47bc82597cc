"""One step of some packing streams: their elements placed by first-fit, written into the row groups, and counted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from virtue_jax.batch import Batch
from virtue_jax.config import VirtueConfig
from virtue_jax.data.loading.stream import Stream, TooManyBad
from virtue_jax.data.packing.first_fit import Groups
from virtue_jax.data.packing.pack import Row, distinct_images, pack_rows


@dataclass(frozen=True)
class PackReport:
    """What a process packed in a step, for logs only.

    pairs: packed ones; waiting: pairs that found no room. tokens of slots, patches of patch_capacity: by row group.
    origins: by row group, row and example. quarantined: {"element", "origin", "error"} of each bad element, or bad pair
    of an element, newly met.
    """

    pairs: int
    waiting: int
    tokens: tuple[int, ...]
    slots: tuple[int, ...]
    patches: tuple[int, ...]
    patch_capacity: tuple[int, ...]
    origins: tuple[tuple[tuple[str, ...], ...], ...]
    quarantined: tuple[dict, ...]


@dataclass(frozen=True)
class Step:
    """A process's rows of one step by row group, stream by stream, and what their packing was like."""

    groups: tuple[Batch, ...]
    report: PackReport


def pack_step(
    streams: Sequence[Stream], groups: Groups, config: VirtueConfig, *, pixels: str = "float32", each: Callable = map
) -> Step:
    """Packs what each stream has next, and lets the rest of it wait.

    groups: shape of each row group and the rows of it that one stream has. each: a `map` to write pixels with.

    Raises:
        TooManyBad: more pairs of a stream cannot be used than is allowed.
    """
    rows: list[list[list]] = [[] for _ in groups]
    vision: list[list[dict]] = [[] for _ in groups]
    pairs, waiting, bad = 0, 0, []
    for stream in streams:
        stream.ask()
    for stream in streams:
        try:
            elements, fit = stream.fit(groups)
        except TooManyBad as error:
            raise TooManyBad(str(error), [*bad, *error.entries]) from error
        bad += stream.bad
        first = [len(group) for group in rows]
        for g, (_, count) in enumerate(groups):
            rows[g] += [[] for _ in range(count)]
            vision[g] += fit.vision[g]
        for element, places in zip(elements, fit.places, strict=True):
            pairs += element.pairs if places is not None else 0
            waiting += element.pairs if places is None else 0
            for examples, (g, r) in zip(element.items, places or (), strict=places is not None):
                rows[g][first[g] + r] += examples
    batches = tuple(
        pack_rows(rows[g], shape, config, vision=vision[g], pixels=pixels, each=each)
        for g, (shape, _) in enumerate(groups)
    )
    return Step(batches, _report(rows, groups, pairs, waiting, bad))


def _report(rows: Sequence[Sequence[Row]], groups: Groups, pairs: int, waiting: int, bad: Sequence[dict]) -> PackReport:
    sized = [(len(group), shape) for group, (shape, _) in zip(rows, groups, strict=True)]
    return PackReport(
        pairs=pairs,
        waiting=waiting,
        tokens=tuple(sum(len(e) for row in group for e in row) for group in rows),
        slots=tuple(count * shape.slots for count, shape in sized),
        patches=tuple(
            sum(len(image.patches) for row in group for image in distinct_images(row).values()) for group in rows
        ),
        patch_capacity=tuple(count * shape.vision_rows * shape.patches for count, shape in sized),
        origins=tuple(tuple(tuple(e.origin for e in row) for row in group) for group in rows),
        quarantined=tuple(bad),
    )
