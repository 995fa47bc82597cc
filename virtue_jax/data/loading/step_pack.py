"""One step of some packing streams: their elements placed by first-fit, written into the row groups, and counted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from virtue_jax.batch import Batch
from virtue_jax.config import VirtueConfig
from virtue_jax.data.encoding.encode import EncodedExample
from virtue_jax.data.loading.stream import Candidates, Stream
from virtue_jax.data.packing.first_fit import Groups, first_fit
from virtue_jax.data.packing.pack import distinct_images, pack_rows


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


class _Rows:
    """The rows of one group that all streams have together, filled."""

    def __init__(self):
        self.examples: list[list[EncodedExample]] = []
        self.vision: list[dict[str, int]] = []


@dataclass(frozen=True)
class StepPacker:
    """groups: shape of each row group and the rows of it that one stream has. config: of the model. pixels: dtype."""

    groups: Groups
    config: VirtueConfig
    pixels: str

    def step(self, streams: Sequence[Stream], each: Callable = map) -> tuple[tuple[Batch, ...], PackReport]:
        """Packs what each stream has next, and lets the rest of it wait. each: a `map` to write pixels with."""
        rows = [_Rows() for _ in self.groups]
        pairs = waiting = 0
        bad = []
        for stream in streams:
            stream.ask()
        for stream in streams:
            candidates = stream.candidates()
            packed = self._place(candidates, rows)
            stream.placed(packed)
            pairs += sum(element.pairs for element in candidates.good if element.number in packed)
            waiting += sum(element.pairs for element in candidates.good if element.number not in packed)
            bad += candidates.bad
        batches = tuple(
            pack_rows(group.examples, shape, self.config, vision=group.vision, pixels=self.pixels, each=each)
            for group, (shape, _) in zip(rows, self.groups, strict=True)
        )
        return batches, self._report(rows, pairs, waiting, bad)

    def _place(self, candidates: Candidates, rows: Sequence[_Rows]) -> set[int]:
        """Appends one stream's rows; returns the numbers of the elements that are in them."""
        fit = first_fit([element.needs for element in candidates.good], self.groups, candidates.waited)
        first = [len(group.examples) for group in rows]
        for group, (_, count), vision in zip(rows, self.groups, fit.vision, strict=True):
            group.examples += [[] for _ in range(count)]
            group.vision += vision
        packed = set()
        for element, places in zip(candidates.good, fit.places, strict=True):
            if places is None:
                continue
            packed.add(element.number)
            for examples, (g, r) in zip(element.items, places, strict=True):
                rows[g].examples[first[g] + r] += examples
        return packed

    def _report(self, rows: Sequence[_Rows], pairs: int, waiting: int, bad) -> PackReport:
        shapes = [shape for shape, _ in self.groups]
        examples = [group.examples for group in rows]
        counts = [len(group) for group in examples]
        return PackReport(
            pairs=pairs,
            waiting=waiting,
            tokens=tuple(sum(len(e) for row in group for e in row) for group in examples),
            slots=tuple(n * shape.slots for n, shape in zip(counts, shapes, strict=True)),
            patches=tuple(
                sum(len(image.patches) for row in group for image in distinct_images(row).values())
                for group in examples
            ),
            patch_capacity=tuple(
                n * shape.vision_rows * shape.patches for n, shape in zip(counts, shapes, strict=True)
            ),
            origins=tuple(tuple(tuple(e.origin for e in row) for row in group) for group in examples),
            quarantined=tuple({"element": b.number, "origin": b.origin, "error": b.error} for b in bad),
        )
