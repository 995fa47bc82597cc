"""The layout of prepared training data: an element (a pair, or several on one image) as one tensorflow-datasets record.

Flat tables that refer to each other by row, because nested ragged features cannot be written without TensorFlow. A
prompt's numbers are JSON, because records hold no more than float32 and the text of a query shows every digit.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.proto import tf_example_pb2

from virtue_jax.data.encoding.encode import image_key
from virtue_jax.data.encoding.images import load_image, load_mask
from virtue_jax.data.example import Example, ImageBytes, InvalidExample, TrainingPair, VisualPrompt

NAME, VERSION, SPLIT = "virtue_pairs", "1.0.0", "train"
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
            "images": kinds.Sequence({"encoded": kinds.Image(), "height": np.int32, "width": np.int32}),
            "masks": kinds.Sequence(kinds.Image(shape=(None, None, 1), encoding_format="png")),
            "examples": kinds.Sequence(
                {
                    "role": kinds.ClassLabel(names=list(_ROLES)),
                    "origin": kinds.Text(),
                    "text": kinds.Text(),
                    "prompt": kinds.Text(),
                    "mask": np.int32,
                }
            ),
            "uses": kinds.Sequence({"example": np.int32, "image": np.int32}),
        }
    )


def to_record(pairs: Sequence[TrainingPair], origin: str) -> dict:
    """The record of an element. Every image and mask is read and decoded whole; an image that several examples show is
    stored once.

    Raises:
        InvalidExample: an image or mask that cannot be read or decoded; names the row it belongs to.
    """
    tables = _Tables()
    for pair in pairs:
        tables.add(_QUERY, pair.query)
        for role, targets in ((_POSITIVE, pair.positives), (_NEGATIVE, pair.negatives)):
            for target in targets:
                tables.add(role, target)
    images = [
        {"encoded": io.BytesIO(image), "height": image.size[0], "width": image.size[1]} for image in tables.images
    ]
    masks = [io.BytesIO(mask) for mask in tables.masks]
    return {"origin": _told(origin), "images": images, "masks": masks, "examples": tables.examples, "uses": tables.uses}


@dataclass
class _Tables:
    images: list[ImageBytes] = field(default_factory=list)
    masks: list[bytes] = field(default_factory=list)
    examples: list[dict] = field(default_factory=list)
    uses: list[dict] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)  # of images, by `image_key`

    def add(self, role: int, example: Example) -> None:
        shown = [self._image(source, example.origin) for source in example.images]
        self.uses += [{"example": len(self.examples), "image": place} for place in shown]
        size = self.images[shown[0]].size if shown else None
        row = {"role": role, "origin": _told(example.origin), "text": _text(example)}
        self.examples.append(row | self._prompt(example.prompt, size, example.origin))

    def _image(self, source, origin: str) -> int:
        key = image_key(source)
        if key not in self.places:
            self.places[key] = len(self.images)
            self.images.append(_checked_image(source, origin))
        return self.places[key]

    def _prompt(self, prompt: VisualPrompt | None, size: tuple[int, int] | None, origin: str) -> dict:
        if prompt is None:
            return {"prompt": "", "mask": _NONE}
        place = _NONE
        if prompt.mask is not None:
            place = len(self.masks)
            encoded = io.BytesIO()
            Image.fromarray(load_mask(prompt.mask, size, origin)).save(encoded, "PNG")
            self.masks.append(encoded.getvalue())
        return {
            "prompt": json.dumps({"box": prompt.box, "points": prompt.points, "frame": prompt.frame}),
            "mask": place,
        }


def _text(example: Example) -> bytes:
    try:
        return example.text.encode()
    except UnicodeEncodeError as error:
        raise InvalidExample(f"{example.origin}: the text is not Unicode ({error}); correct it") from error


def _told(origin: str) -> bytes:
    """File names may hold bytes that are no text."""
    return origin.encode(errors="backslashreplace")


def _checked_image(source, origin: str) -> ImageBytes:
    """The bytes of an image that have been decoded whole."""
    if isinstance(source, bytes):
        return ImageBytes(source, load_image(source, origin).shape[:2])
    try:
        encoded = Path(source).read_bytes()
        return ImageBytes(encoded, load_image(encoded, origin).shape[:2])
    except (InvalidExample, OSError):
        load_image(source, origin)  # the same error, with the file's name in it
        raise


def from_record(record: bytes) -> tuple[str, tuple[TrainingPair, ...]]:
    """Origin and pairs of a stored record: images as `ImageBytes`, masks as bool[H, W].

    Parsed without tensorflow-datasets' own decoding, which is several times slower and takes images apart.
    """
    columns = tf_example_pb2.Example.FromString(record).features.feature

    def texts(name: str) -> Sequence[bytes]:
        return columns[name].bytes_list.value

    def numbers(name: str) -> Sequence[int]:
        return columns[name].int64_list.value

    stored = zip(texts("images/encoded"), numbers("images/height"), numbers("images/width"), strict=True)
    images = [ImageBytes(encoded, (height, width)) for encoded, height, width in stored]
    masks = texts("masks")
    shown: list[list[ImageBytes]] = [[] for _ in numbers("examples/role")]
    for example, image in zip(numbers("uses/example"), numbers("uses/image"), strict=True):
        shown[example].append(images[image])
    told = (texts(f"examples/{name}") for name in ("origin", "text", "prompt"))
    rows = zip(numbers("examples/role"), *told, numbers("examples/mask"), shown, strict=True)
    pairs: list[tuple[list[Example], ...]] = []
    for role, origin, text, prompt, mask, sources in rows:
        if role == _QUERY:
            pairs.append(tuple([] for _ in _ROLES))
        visual = _visual_prompt(prompt, masks[mask] if mask != _NONE else None)
        pairs[-1][role].append(Example(text.decode(), tuple(sources), visual, origin.decode()))
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
