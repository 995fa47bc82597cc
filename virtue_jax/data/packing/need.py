"""What examples take of a row: the one place that counts it, for encoded examples and for lengths alike."""

from collections.abc import Hashable, Sequence
from dataclasses import fields
from typing import NamedTuple

from virtue_jax.batch import RowShape
from virtue_jax.data.encoding.encode import EncodedExample
from virtue_jax.data.packing.layout import check_shape


class Need(NamedTuple):
    """What one item, an example or several that share a row, takes of that row.

    slots, examples, prompts: of all its examples together. points, positives: the most of one prompt, of one query.
    images: (identity, patches, prompted) of each distinct image; an identity that the row already holds costs nothing
    again, `prompted` ones take a SAM-2 run.
    """

    slots: int
    images: tuple[tuple[Hashable, int, bool], ...] = ()
    examples: int = 1
    prompts: int = 0
    points: int = 0
    masks: bool = False
    positives: int = 0


def need_of(examples: Sequence[EncodedExample]) -> Need:
    """What encoded examples that share a row take of it; images of one key are counted once."""
    return need_together([_need(example) for example in examples])


def example_need(
    slots: int,
    images: Sequence[tuple[Hashable, int]] = (),
    *,
    points: int | None = None,
    mask: bool = False,
    positives: int = 0,
) -> Need:
    """What one example takes, from its numbers alone.

    images: (identity, patches) of its distinct images, the prompt's image first. points: sparse tokens of its prompt,
    SAM-2's padding point included; None = no prompt. mask: whether the prompt has one.
    """
    prompted = points is not None
    return Need(
        slots,
        tuple((identity, patches, prompted and i == 0) for i, (identity, patches) in enumerate(images)),
        prompts=int(prompted),
        points=points or 0,
        masks=mask,
        positives=positives,
    )


def need_together(needs: Sequence[Need]) -> Need:
    """What several needs take of one row together."""
    if len(needs) == 1:
        return needs[0]
    images: dict[Hashable, tuple[Hashable, int, bool]] = {}
    for need in needs:
        for image in need.images:
            known = images.setdefault(image[0], image)
            images[image[0]] = (*known[:2], known[2] or image[2])
    return Need(
        sum(need.slots for need in needs),
        tuple(images.values()),
        sum(need.examples for need in needs),
        sum(need.prompts for need in needs),
        max((need.points for need in needs), default=0),
        any(need.masks for need in needs),
        max((need.positives for need in needs), default=0),
    )


def by_first_image(queries: Sequence[Need]) -> list[list[int]]:
    """Numbers of the queries that may share a row, because their first image is the same; those without one alone."""
    rows: dict[Hashable, list[int]] = {}
    for number, need in enumerate(queries):
        rows.setdefault(("image", need.images[0][0]) if need.images else number, []).append(number)
    return list(rows.values())


def shortage(need: Need, shape: RowShape) -> list[str]:
    """What an empty row of this shape lacks for an item, each as "slots: 9 needed, capacity 8"; empty where it has
    enough of everything. Whether its vision rows hold the images together is `first_fit`'s to say."""
    needed = _least_shape(need)
    names = ("slots", "examples", "positives", "patches", "images", "prompts", "points", "masks")
    return [
        f"{name}: {needed[name]} needed, capacity {getattr(shape, name)}"
        for name in names
        if needed[name] > getattr(shape, name)
    ]


def row_shape(
    rows: Sequence[Sequence[EncodedExample]], *, slots: int | Sequence[int] = 1, patches: int | Sequence[int] = 4
) -> RowShape:
    """The smallest shape that holds every row, with a vision row for each image of a row.

    slots, patches: what these two are rounded up to: a number = its multiples, a sequence = the smallest bucket in it
    that is large enough. Patches must come out a multiple of 4.

    Raises:
        ValueError: no rows; a row larger than the largest bucket, named; patches rounded up to no multiple of 4.
    """
    needs = [_least_shape(need_of(row)) for row in rows]
    if not needs:
        raise ValueError("no rows to take a shape from; give at least one")
    most = {field.name: max(need[field.name] for need in needs) for field in fields(RowShape)}
    most["positives"] = max(most["positives"], 1)
    for name, steps in (("slots", slots), ("patches", patches)):
        longest = max(range(len(needs)), key=lambda i: needs[i][name])
        most[name] = _round_up(most[name], steps, name, f"row {longest} ({origins(rows[longest])})")
    shape = RowShape(**most)
    check_shape(shape)
    return shape


def origins(row: Sequence[EncodedExample]) -> str:
    """The first few examples of a row, by name."""
    names = [example.origin for example in row]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _need(example: EncodedExample) -> Need:
    prompt = example.prompt
    return example_need(
        len(example),
        [(image.key, len(image.patches)) for image in example.images],
        points=None if prompt is None else len(prompt.labels),
        mask=prompt is not None and prompt.mask is not None,
        positives=0 if example.label is None else len(example.label.positives),
    )


def _least_shape(need: Need) -> dict[str, int | bool]:
    """By the names of `RowShape`'s fields."""
    return {
        "slots": need.slots,
        "examples": need.examples,
        "positives": need.positives,
        "vision_rows": len(need.images),
        "patches": max((patches for _, patches, _ in need.images), default=0),
        "images": sum(prompted for _, _, prompted in need.images),
        "prompts": need.prompts,
        "points": need.points,
        "masks": need.masks,
    }


def _round_up(need: int, steps: int | Sequence[int], name: str, where: str) -> int:
    if isinstance(steps, int):
        return -(-need // steps) * steps
    fitting = [bucket for bucket in steps if bucket >= need]
    if not fitting:
        raise ValueError(f"{where}: {need} {name}, more than the largest bucket {max(steps)}; add a larger one")
    return min(fitting)
