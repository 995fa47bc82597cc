"""First-fit of training elements into the rows of one step: which row each item goes to, and which vision row each of
its images. Counts only, no arrays: the stream packer runs it on encoded examples, a simulation on made-up lengths.

An *item* is one example, or several that share a row because they share an image. An *element* is the items of one or
several pairs (queries, positives, hard negatives), placed in one step whole or not at all.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from virtue_jax.batch import RowShape
from virtue_jax.data.packing.need import Need, shortage

Groups = Sequence[tuple[RowShape, int]]  # the shape of each row group and its number of rows


class Place(NamedTuple):
    group: int
    row: int


class Fit(NamedTuple):
    """places: per element (in the order given) the Place of each of its items, or None: it waits. vision: per group and
    row {image identity: vision row}."""

    places: list[tuple[Place, ...] | None]
    vision: list[list[dict[Hashable, int]]]


def first_fit(elements: Sequence[Sequence[Need]], groups: Groups, waiting: int = 0) -> Fit:
    """Places elements, oldest first in `elements`, into an empty step; the first `waiting` found no room before.

    The oldest element is placed whole before all others, so that each gets its turn; then come those that have waited,
    by age, then the new ones by decreasing size: first everybody's items with images, then everybody's text. An item
    with images takes the first row with room in the image group of the smallest patch capacity that holds its images,
    then in the next larger ones; text goes to text rows, then into what is left of image rows. Where one item finds no
    room, the whole element waits. A function of its arguments alone.
    """
    step = _Step(groups)
    places: list[tuple[Place, ...] | None] = [None] * len(elements)
    if elements:
        first = step.place(elements[0])
        places[0] = None if first is None else tuple(first)
    waited = range(1, min(waiting, len(elements)))
    new = sorted(range(max(waiting, 1), len(elements)), key=lambda i: _size(elements[i]), reverse=True)
    begun = []
    for i in (*waited, *new):
        taken = step.place([need for need in elements[i] if need.images])
        if taken is not None:
            begun.append((i, taken))
    for i, taken in begun:
        items = elements[i]
        texts = step.place([need for need in items if not need.images])
        if texts is None:
            step.remove([need for need in items if need.images], taken)
        else:
            with_images, without = iter(taken), iter(texts)
            places[i] = tuple(next(with_images if need.images else without) for need in items)
    return Fit(places, [[{key: held[0] for key, held in row.held.items()} for row in rows] for rows in step.rows])


def vision_places(needs: Iterable[Need], shape: RowShape) -> list[dict[Hashable, int]]:
    """{image identity: vision row} of rows whose examples are settled: need i fills row i alone.

    Raises:
        ValueError: a row of this shape does not hold the need; says what it lacks.
    """
    places = []
    for r, need in enumerate(needs):
        fit = first_fit([[need]], [(shape, 1)])
        if fit.places[0] is None:
            raise ValueError(f"row {r} overflows: {'; '.join(_short(need, shape))}; put less into it or enlarge it")
        places.append(fit.vision[0][0])
    return places


def fits_a_row(need: Need, groups: Groups) -> bool:
    """Whether an empty row of some group holds the item."""
    return _Step([(shape, min(count, 1)) for shape, count in groups]).place([need]) is not None


def misfit(items: Sequence[Need], groups: Groups) -> str | None:
    """Why an element does not fit even an empty step: need, capacity, what to enlarge; None where it fits."""
    if _Step([(shape, min(count, len(items))) for shape, count in groups]).place(items) is not None:
        return None
    for need in items:
        if not fits_a_row(need, groups):
            short = min((_short(need, shape) for shape, _ in groups), key=len)
            return f"{'; '.join(short)}; enlarge that in config.data.rows"
    rows = [count for _, count in groups]
    return (
        f"{len(items)} items of {sum(need.slots for need in items)} slots do not fit together into the {rows} rows "
        "that a stream has of each group; take more rows or fewer streams"
    )


def _size(items: Sequence[Need]) -> tuple[int, int]:
    return max((need.slots for need in items if need.images), default=0), sum(need.slots for need in items)


def _short(need: Need, shape: RowShape) -> list[str]:
    """What of an item an empty row of this shape has no room for."""
    together = f"vision_rows: {shape.vision_rows} do not hold images of {[p for _, p, _ in need.images]} patches"
    return shortage(need, shape) or [together]


class _Row:
    """What is left of one row. held: {image identity: [vision row, items on it, of these prompted]}."""

    __slots__ = ("examples", "held", "images", "prompts", "slots", "vision")

    def __init__(self, shape: RowShape):
        self.slots, self.examples = shape.slots, shape.examples
        self.prompts, self.images = shape.prompts, shape.images
        self.vision = [shape.patches] * shape.vision_rows
        self.held: dict[Hashable, list[int]] = {}

    def find(self, need: Need) -> list[int] | None:
        """The vision row of each image of the item, or None where there is no room for them."""
        free, found, runs = self.vision.copy(), [], 0
        for identity, patches, prompted in need.images:
            held = self.held.get(identity)
            if held is not None:
                found.append(held[0])
                runs += prompted and not held[2]
                continue
            for v, room in enumerate(free):
                if room >= patches:
                    free[v] -= patches
                    found.append(v)
                    break
            else:
                return None
            runs += prompted
        return found if runs <= self.images else None

    def add(self, need: Need, vision: list[int]) -> None:
        self._count(need, -1)
        for (identity, patches, prompted), v in zip(need.images, vision, strict=True):
            held = self.held.setdefault(identity, [v, 0, 0])
            if not held[1]:
                self.vision[v] -= patches
            self.images -= prompted and not held[2]
            held[1] += 1
            held[2] += prompted

    def remove(self, need: Need) -> None:
        """The inverse of `add`."""
        self._count(need, 1)
        for identity, patches, prompted in need.images:
            held = self.held[identity]
            held[1] -= 1
            held[2] -= prompted
            self.images += prompted and not held[2]
            if not held[1]:
                self.vision[held[0]] += patches
                del self.held[identity]

    def _count(self, need: Need, sign: int) -> None:
        self.slots += sign * need.slots
        self.examples += sign * need.examples
        self.prompts += sign * need.prompts


class _Step:
    def __init__(self, groups: Groups):
        self.shapes = [shape for shape, _ in groups]
        self.rows = [[_Row(shape) for _ in range(count)] for shape, count in groups]
        by_patches = sorted(range(len(groups)), key=lambda g: (self.shapes[g].patches, g))
        self._with_images = [g for g in by_patches if self.shapes[g].patches]
        self._text_first = [g for g in by_patches if not self.shapes[g].patches] + self._with_images

    def place(self, items: Sequence[Need]) -> list[Place] | None:
        """All items or, changing nothing, none."""
        done: list[Place] = []
        for need in items:
            place = self._place(need)
            if place is None:
                self.remove(items[: len(done)], done)
                return None
            done.append(place)
        return done

    def remove(self, items: Sequence[Need], places: Sequence[Place]) -> None:
        for need, (g, r) in zip(items, places, strict=True):
            self.rows[g][r].remove(need)

    def _place(self, need: Need) -> Place | None:
        slots, examples, prompts = need.slots, need.examples, need.prompts
        patches = max((image[1] for image in need.images), default=0)
        for g in self._with_images if patches else self._text_first:
            shape = self.shapes[g]
            if patches > shape.patches or need.points > shape.points or need.masks > shape.masks:
                continue
            if need.positives > shape.positives:
                continue
            for r, row in enumerate(self.rows[g]):
                if row.slots < slots or row.examples < examples or row.prompts < prompts:
                    continue
                vision = row.find(need) if patches else []
                if vision is not None:
                    row.add(need, vision)
                    return Place(g, r)
        return None
