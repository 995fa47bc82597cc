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
        prompts = [_prompt(example.prompt) for _, example, _ in shown]  # the last that may fail
        for (role, example, places), mask, prompt in zip(shown, masks, prompts, strict=True):
            self._uses += [{"example": len(self._examples), "image": place} for place in places]
            row = {"role": role, "origin": _told(example.origin), "text": example.text.encode(), "prompt": prompt}
            self._examples.append(row | {"mask": _NONE if mask is None else len(self._masks)})
            self._masks += [] if mask is None else [mask]

    def record(self, origin: str) -> dict:
        images = [{"encoded": io.BytesIO(one), "height": one.size[0], "width": one.size[1]} for one in self._images]
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
        inside = load_mask(example.prompt.mask, self._images[places[0]].size, example.origin)
        Image.fromarray(inside).save(encoded, "PNG")
        return encoded.getvalue()


def _prompt(prompt: VisualPrompt | None) -> str:
    return "" if prompt is None else json.dumps({"box": prompt.box, "points": prompt.points, "frame": prompt.frame})


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
