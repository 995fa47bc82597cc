"""The layout of prepared training data: an element (a pair, or several on one image) as one tensorflow-datasets record.

Flat tables that refer to each other by row, because nested ragged features cannot be written without TensorFlow. A
prompt's numbers are JSON, because records hold no more than float32 and the text of a query shows every digit.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path

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


class RecordTables:
    """The record of an element, pair by pair: each image and mask is read and decoded whole, and an image that several
    examples show is stored once."""

    def __init__(self):
        self._images: list[ImageBytes] = []
        self._places: dict[str, int] = {}  # of images, by `image_key`
        self._masks: list[bytes] = []
        self._examples: list[dict] = []
        self._uses: list[dict] = []

    def add(self, pair: TrainingPair) -> None:
        """Adds a pair, or nothing of it but images.

        Raises:
            InvalidExample, OSError: an image or mask that cannot be read or decoded; names the row it belongs to.
        """
        sides = ((_QUERY, (pair.query,)), (_POSITIVE, pair.positives), (_NEGATIVE, pair.negatives))
        shown = [(role, example, self._shown(example)) for role, examples in sides for example in examples]
        masks = [self._mask(example, places) for _, example, places in shown]
        for (role, example, places), mask in zip(shown, masks, strict=True):
            self._uses += [{"example": len(self._examples), "image": place} for place in places]
            row = {"role": role, "origin": _told(example.origin), "text": example.text.encode()}
            row["upright"] = int(example.upright)
            self._examples.append(row | self._prompt(example.prompt, mask))

    def record(self, origin: str) -> dict:
        images = [
            {"encoded": io.BytesIO(i), "height": i.size[0], "width": i.size[1], "orientation": i.orientation}
            for i in self._images
        ]
        masks = [io.BytesIO(mask) for mask in self._masks]
        tables = {"images": images, "masks": masks, "examples": self._examples, "uses": self._uses}
        return {"origin": _told(origin)} | tables

    def _shown(self, example: Example) -> list[int]:
        """Places of the example's images."""
        places = []
        for source in example.images:
            key = image_key(source)
            if key not in self._places:
                self._images.append(_checked_image(source, example.origin))
                self._places[key] = len(self._images) - 1
            places.append(self._places[key])
        return places

    def _mask(self, example: Example, places: list[int]) -> bytes | None:
        """PNG"""
        if example.prompt is None or example.prompt.mask is None:
            return None
        encoded = io.BytesIO()
        size = image_size(self._images[places[0]], example.origin, upright=example.upright)
        inside = load_mask(example.prompt.mask, size, example.origin, upright=example.upright)
        Image.fromarray(inside).save(encoded, "PNG")
        return encoded.getvalue()

    def _prompt(self, prompt: VisualPrompt | None, mask: bytes | None) -> dict:
        if prompt is None:
            return {"prompt": "", "mask": _NONE}
        if mask is not None:
            self._masks.append(mask)
        told = json.dumps({"box": prompt.box, "points": prompt.points, "frame": prompt.frame})
        return {"prompt": told, "mask": _NONE if mask is None else len(self._masks) - 1}


def _told(origin: str) -> bytes:
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
    told = (texts(f"examples/{name}") for name in ("origin", "text", "prompt"))
    rows = zip(
        numbers("examples/role"), *told, numbers("examples/mask"), numbers("examples/upright"), shown, strict=True
    )
    pairs: list[tuple[list[Example], ...]] = []
    for role, origin, text, prompt, mask, upright, sources in rows:
        if role == _QUERY:
            pairs.append(tuple([] for _ in _ROLES))
        visual = _visual_prompt(prompt, masks[mask] if mask != _NONE else None)
        pairs[-1][role].append(Example(text.decode(), tuple(sources), visual, origin.decode(), bool(upright)))
    made = tuple(TrainingPair(query, tuple(positives), tuple(negatives)) for (query,), positives, negatives in pairs)
    (origin,) = texts("origin")
    return origin.decode(), made


def _visual_prompt(told: bytes, mask: bytes | None) -> VisualPrompt | None:
    if not told:
        return None
    values = json.loads(told)
    box = None if values["box"] is None else tuple(values["box"])
    decoded = None if mask is None else np.asarray(Image.open(io.BytesIO(mask)), bool)
    return VisualPrompt(box, tuple(map(tuple, values["points"])), decoded, values["frame"])
