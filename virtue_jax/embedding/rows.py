"""Which rows hold what is embedded: two shapes for nearly everything, larger ones where an example needs them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from virtue_jax.batch import Batch, RowShape
from virtue_jax.config import VirtueConfig
from virtue_jax.data.encoding.encode import EncodedExample
from virtue_jax.data.packing.first_fit import first_fit, fits_a_row
from virtue_jax.data.packing.need import Need, need_of
from virtue_jax.data.packing.pack import pack_rows

TEXT_SLOTS = 1024  # of a row of texts
TEXTS = 64  # that such a row holds at most
PROMPTS = 4  # that a row of images holds at most, and as many images that they are on
POINTS = 16  # of a prompt, SAM-2's padding point included
WORDS = 256  # slots of an image row for the text that comes with its largest image
MOST_PATCHES = 5120  # of an image row; 1,280 vision tokens, as many as the published models were trained with
_STEP = 512  # what slots and patches are multiples of: quarters are still whole blocks of attention kernels


class PackedRows(NamedTuple):
    """places: (row, place in it, number of the example) of every example that is in the batch."""

    batch: Batch
    places: tuple[tuple[int, int, int], ...]


def text_shape() -> RowShape:
    return RowShape(slots=TEXT_SLOTS, examples=TEXTS)


def image_shape(config: VirtueConfig, segmentation: bool) -> RowShape:
    """Of rows whose examples have images: room for the model's largest image, or for several smaller ones."""
    patches = _multiple(min(config.max_pixels // config.vision.patch_size**2, MOST_PATCHES))
    merged = config.vision.spatial_merge_size**2
    slots = _multiple(config.segmentation_tokens * segmentation + patches // merged + WORDS)
    shape = RowShape(slots=slots, examples=PROMPTS, vision_rows=1, patches=patches)
    if not segmentation:
        return shape
    # Masks always: a program without them would be a second one, and they cost little.
    return replace(shape, images=PROMPTS, prompts=PROMPTS, points=POINTS, masks=True)


def grown(shape: RowShape, need: Need) -> RowShape:
    """`shape` where it holds the example; else with what is too small doubled until it does, so that few examples, few
    programs and no limit go together."""
    patches = [patches for _, patches, _ in need.images]
    shape = replace(
        shape,
        slots=_doubled(shape.slots, need.slots),
        patches=_doubled(shape.patches, max(patches, default=0)),
        points=_doubled(shape.points, need.points),
    )
    while not fits_a_row(need, [(shape, 1)]):
        shape = replace(shape, vision_rows=2 * shape.vision_rows)
    return shape


def packed_rows(
    examples: Mapping[int, EncodedExample],
    shape: RowShape,
    count: int,
    config: VirtueConfig,
    *,
    vision: Mapping[str, int] | None = None,
    each: Callable = map,
) -> Iterator[PackedRows]:
    """Examples by their number -> batches of `count` rows, the last filled up with empty rows.

    vision: {image key: vision row} of every row, instead of where first-fit would put the images. each: a `map` to
    write pixels with.
    """
    numbers = list(examples)
    fit = first_fit([[need_of([examples[number]])] for number in numbers], [(shape, len(numbers))])
    rows: list[list[int]] = [[] for _ in numbers]
    for number, (place,) in zip(numbers, fit.places, strict=True):
        rows[place.row].append(number)
    used = [r for r, row in enumerate(rows) if row]
    for start in range(0, len(used), count):
        part = used[start : start + count]
        empty = count - len(part)
        members = [rows[r] for r in part] + [[]] * empty
        held = [fit.vision[0][r] if vision is None else vision for r in part] + [{}] * empty
        contents = [[examples[number] for number in row] for row in members]
        batch = pack_rows(contents, shape, config, vision=held, each=each)
        places = ((r, k, number) for r, row in enumerate(members) for k, number in enumerate(row))
        yield PackedRows(batch, tuple(places))


def same_rows(
    example: EncodedExample, shape: RowShape, count: int, config: VirtueConfig, each: Callable = map
) -> tuple[Batch, dict[str, int]]:
    """A batch of `count` rows that all hold the same example, and {image key: vision row} of each of them."""
    vision = first_fit([[need_of([example])]], [(shape, 1)]).vision[0][0]
    return pack_rows([[example]] * count, shape, config, vision=[vision] * count, each=each), vision


def _multiple(size: int) -> int:
    return -(-size // _STEP) * _STEP


def _doubled(capacity: int, needed: int) -> int:
    while capacity < needed:
        capacity *= 2
    return capacity
