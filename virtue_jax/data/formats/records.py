"""The layout of prepared training data: an element (a pair, or several on one image) as one tensorflow-datasets record.

Flat tables that refer to each other by row, because nested ragged features cannot be written without TensorFlow. A
prompt's numbers are JSON, because records hold no more than float32 and the text of a query shows every digit.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import ExifTags, Image
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.proto import tf_example_pb2

from virtue_jax.data.encoding.encode import image_key
from virtue_jax.data.encoding.images import decoded_whole, image_size, load_image, load_mask
from virtue_jax.data.example import Example, ImageBytes, InvalidExample, TrainingPair, VisualPrompt
from virtue_jax.data.pixels import ImagePixels

NAME, VERSION, SPLIT = "virtue_pairs", "1.1.0", "train"
_QUERY, _POSITIVE, _NEGATIVE = range(3)
_ROLES = ("query", "positive", "negative")
_NONE = -1


def dataset_info(directory: Path, about: dict) -> tfds.core.DatasetInfo:
    """What tensorflow-datasets has to know of a prepared set; `about` is kept as its metadata."""
    return tfds.core.DatasetInfo(
        builder=DatasetIdentity(NAME, tfds.core.Version(VERSION), str(directory), module_name=__name__),
        description="Training pairs of virtue_jax: a query, its positives and hard negatives, with encoded images.",
        features=_features(),
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict(about),
    )


def _features() -> tfds.features.FeaturesDict:
    """images: each once, as found. examples: a query begins a pair. uses: which example shows which image, in order."""
    kinds = tfds.features
    return kinds.FeaturesDict(
        {
            "origin": kinds.Text(),
            "images": kinds.Sequence(
                {"encoded": kinds.Image(), "height": np.int32, "width": np.int32, "orientation": np.int32}
            ),
            "masks": kinds.Sequence(kinds.Image(shape=(None, None, 1), encoding_format="png")),
            "examples": kinds.Sequence(
                {
                    "role": kinds.ClassLabel(names=list(_ROLES)),
                    "origin": kinds.Text(),
                    "text": kinds.Text(),
                    "prompt": kinds.Text(),
                    "mask": np.int32,
                    "upright": np.int32,
                }
            ),
            "uses": kinds.Sequence({"example": np.int32, "image": np.int32}),
        }
    )


class StoredExample(NamedTuple):
    """An example as a record holds it: its images as (`image_key`, encoded bytes), its mask as a PNG."""

    role: int
    example: Example
    images: tuple[tuple[str, ImageBytes], ...]
    mask: bytes | None


def stored_pair(pair: TrainingPair, shared: dict[str, ImageBytes]) -> tuple[StoredExample, ...]:
    """The pair's examples, query first; every image and mask is read and decoded whole. shared: images by key that
    earlier pairs read and later ones may take.

    Raises:
        InvalidExample, OSError: an image or mask that cannot be read or decoded; names the row it belongs to.
    """
    sides = ((_QUERY, (pair.query,)), (_POSITIVE, pair.positives), (_NEGATIVE, pair.negatives))
    return tuple(_stored(role, example, shared) for role, examples in sides for example in examples)


def to_record(origin: str, pairs: Sequence[Sequence[StoredExample]]) -> dict:
    """The record of an element, the inverse of `from_record`: values of `dataset_info`'s features. A pure function; an
    image that several examples show is stored once."""
    images: dict[str, ImageBytes] = {}
    tables: dict[str, list] = {"masks": [], "examples": [], "uses": []}
    for role, example, shown, mask in (stored for pair in pairs for stored in pair):
        images |= {key: image for key, image in shown if key not in images}
        places = list(images)
        tables["uses"] += [{"example": len(tables["examples"]), "image": places.index(key)} for key, _ in shown]
        values = {"role": role, "origin": _origin_bytes(example.origin), "text": example.text.encode()}
        values["upright"] = int(example.upright)
        number = _NONE if mask is None else len(tables["masks"])
        tables["examples"].append(values | {"prompt": _prompt_json(example.prompt), "mask": number})
        tables["masks"] += [] if mask is None else [io.BytesIO(mask)]
    stored = [
        {"encoded": io.BytesIO(x), "height": x.size[0], "width": x.size[1], "orientation": x.orientation}
        for x in images.values()
    ]
    return {"origin": _origin_bytes(origin), "images": stored} | tables


def _stored(role: int, example: Example, shared: dict[str, ImageBytes]) -> StoredExample:
    images = []
    for source in example.images:
        key = image_key(source)
        if key not in shared:
            shared[key] = _checked_image(source, example.origin)
        images.append((key, shared[key]))
    mask = None if example.prompt is None else example.prompt.mask
    if mask is None:
        return StoredExample(role, example, tuple(images), None)
    size = image_size(images[0][1], example.origin, upright=example.upright)
    inside = load_mask(mask, size, example.origin, upright=example.upright)
    return StoredExample(role, example, tuple(images), _png(inside))


def _png(mask: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(mask).save(encoded, "PNG")
    return encoded.getvalue()


def _prompt_json(prompt: VisualPrompt | None) -> str:
    return "" if prompt is None else json.dumps({"box": prompt.box, "points": prompt.points, "frame": prompt.frame})


def _origin_bytes(origin: str) -> bytes:
    """File names may hold bytes that are no text."""
    return origin.encode(errors="backslashreplace")


def _checked_image(source, origin: str) -> ImageBytes:
    """The bytes of an image that have been decoded whole."""
    if isinstance(source, ImagePixels):
        source = _encoded(source)
    if isinstance(source, bytes):
        return decoded_whole(source, origin)
    try:
        return decoded_whole(Path(source).read_bytes(), origin)
    except (InvalidExample, OSError):
        load_image(source, origin)  # the same error, with the file's name in it
        raise


def _encoded(image: ImagePixels) -> bytes:
    """PNG, with the orientation."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = image.orientation
    Image.fromarray(image.levels).save(file, "PNG", exif=exif)
    return file.getvalue()


def from_record(record: bytes) -> tuple[str, tuple[TrainingPair, ...]]:
    """Origin and pairs of a stored record: images as `ImageBytes`, masks as bool[H, W].

    Parsed without tensorflow-datasets' own decoding, which is several times slower and takes images apart.
    """
    columns = tf_example_pb2.Example.FromString(record).features.feature

    def texts(name: str) -> Sequence[bytes]:
        return columns[name].bytes_list.value

    def numbers(name: str) -> Sequence[int]:
        return columns[name].int64_list.value

    headers = (numbers(f"images/{name}") for name in ("height", "width", "orientation"))
    stored = zip(texts("images/encoded"), *headers, strict=True)
    images = [ImageBytes(encoded, (height, width), orientation) for encoded, height, width, orientation in stored]
    masks = texts("masks")
    shown: list[list[ImageBytes]] = [[] for _ in numbers("examples/role")]
    for example, image in zip(numbers("uses/example"), numbers("uses/image"), strict=True):
        shown[example].append(images[image])
    columns_of_text = (texts(f"examples/{name}") for name in ("origin", "text", "prompt"))
    flags = (numbers(f"examples/{name}") for name in ("mask", "upright"))
    rows = zip(numbers("examples/role"), *columns_of_text, *flags, shown, strict=True)
    pairs: list[tuple[list[Example], ...]] = []
    for role, origin, text, prompt, mask, upright, sources in rows:
        if role == _QUERY:
            pairs.append(tuple([] for _ in _ROLES))
        visual = _visual_prompt(prompt, masks[mask] if mask != _NONE else None)
        pairs[-1][role].append(Example(text.decode(), tuple(sources), visual, origin.decode(), bool(upright)))
    (origin,) = texts("origin")
    return origin.decode(), tuple(
        TrainingPair(query, tuple(positives), tuple(negatives)) for (query,), positives, negatives in pairs
    )


def _visual_prompt(numbers: bytes, mask: bytes | None) -> VisualPrompt | None:
    if not numbers:
        return None
    values = json.loads(numbers)
    box = None if values["box"] is None else tuple(values["box"])
    decoded = None if mask is None else np.asarray(Image.open(io.BytesIO(mask)), bool)
    return VisualPrompt(box, tuple(map(tuple, values["points"])), decoded, values["frame"])
