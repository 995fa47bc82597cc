"""One Example -> numpy arrays: tokens, rotary positions, grey levels of its images, encoded prompt."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from virtue_jax.batch import QUERY, TARGET
from virtue_jax.config import Compat, VirtueConfig
from virtue_jax.data.encoding.images import load_image
from virtue_jax.data.encoding.positions import ImageSpan, rotary_positions
from virtue_jax.data.encoding.prompts import EncodedPrompt, encode_prompt, prompt_text
from virtue_jax.data.encoding.qwen_image import normalise, normalise_patches, qwen_image
from virtue_jax.data.encoding.sam_image import sam_image, sam_levels
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.example import IMAGE_MARKER, Example, ImageSource, InvalidExample
from virtue_jax.data.pixels import ImagePixels


class TokenGrid(Protocol):
    """What of an image the text depends on: the vision tokens that it takes, rows and columns of its patches."""

    vision_tokens: int
    grid: tuple[int, int]


@dataclass(frozen=True)
class EncodedImage:
    """One image for both towers.

    key: the same for the same file or the same bytes, read alike, and size; images of one key are stored once in a row.
    size: (H, W) of the image as read. patches: uint8[P, 588], grey levels. patch_yx: int32[P, 2]. grid: rows and
    columns of patches. sam: uint8[h, w, 3], the picture that SAM-2's input is made of, or None where no prompt is on
    this image; sam_normalised: whether it is CLIP-normalised first (`Compat.sam_source` "qwen"). sam_resized: sam is
    SAM-2's input already, in grey levels uint8[S, S, 3].
    """

    key: str
    size: tuple[int, int]
    patches: np.ndarray
    patch_yx: np.ndarray
    grid: tuple[int, int]
    sam: np.ndarray | None = None
    sam_normalised: bool = False
    sam_resized: bool = False

    @property
    def vision_tokens(self) -> int:
        return len(self.patches) // 4

    def write_patches(self, out: np.ndarray) -> None:
        """Into [P, 588]: grey levels where that is uint8, CLIP-normalised where it is float32."""
        if out.dtype == np.uint8:
            out[...] = self.patches
        else:
            normalise_patches(self.patches, out)

    def write_sam(self, out: np.ndarray) -> None:
        """SAM-2's input into [S, S, 3]: rounded grey levels where that is uint8, normalised where it is float32.

        Raises:
            ValueError: `sam_resized`, which is rounded, into anything else than uint8 of its size.
        """
        if self.sam_resized:
            if (out.dtype, out.shape) != (self.sam.dtype, self.sam.shape):
                raise ValueError(
                    f"image {self.key}: SAM-2's input was encoded as {self.sam.dtype}{list(self.sam.shape)}, asked "
                    f"for as {out.dtype}{list(out.shape)}; encode with the `pixels` and the model that it is packed for"
                )
            out[...] = self.sam
        elif out.dtype == np.uint8:
            sam_levels(self.sam, len(out), out)
        else:
            sam_image(normalise(self.sam) if self.sam_normalised else self.sam, len(out), out)


class Label(NamedTuple):
    """What an example is to the loss: a query with the contents of the targets it matches, or a target with its own."""

    side: int
    content: int = -1
    positives: tuple[int, ...] = ()

    @classmethod
    def query(cls, *positives: int) -> "Label":
        return cls(QUERY, -1, positives)

    @classmethod
    def target(cls, content: int) -> "Label":
        return cls(TARGET, content)


@dataclass(frozen=True)
class EncodedExample:
    """One example, ready to be packed into a row.

    tokens: int32[n]; 0 where a segmentation or vision token stands. positions: int32[3, n]. vision: int32[n], index
    of the vision token that stands here, counted through `images`, -1 = none. segmentation: int32[n], index
    of the segmentation token that stands here, -1 = none. images: distinct ones, the prompt's image first. prompt: None
    for text alone and for the plain Qwen2-VL embedder. origin names file and row in errors. label: None for a query
    without positives (embedding only).
    """

    tokens: np.ndarray
    positions: np.ndarray
    vision: np.ndarray
    segmentation: np.ndarray
    images: tuple[EncodedImage, ...] = ()
    prompt: EncodedPrompt | None = None
    origin: str = "example"
    label: Label | None = None

    def __len__(self) -> int:
        return len(self.tokens)


class ExampleEncoder:
    """Encodes examples for one model and one behaviour; holds no state between calls and can be pickled.

    Sequence: [segmentation tokens of the prompt, or of the point grid][text with vision tokens]; text alone has no
    segmentation tokens. `compat` replaces the config's.

    Raises:
        ValueError: a tokenizer that does not belong to the model.
    """

    def __init__(self, config: VirtueConfig, tokenizer: Tokenizer, compat: Compat | None = None):
        tokenizer.check(config.text)
        self.config = config if compat is None else dataclasses.replace(config, compat=compat)
        self.tokenizer = tokenizer

    def encode(
        self,
        example: Example,
        *,
        segmentation: bool = True,
        shared: dict[str, EncodedImage] | None = None,
        pixels: str = "float32",
    ) -> EncodedExample:
        """Reads and prepares everything of an example. Without `segmentation`: the plain Qwen2-VL embedder of the same
        text (a prompt is still checked, and its coordinates still written by the template). shared: images by key that
        earlier calls prepared and later ones may take; given the same dict, examples of one row read an image once.
        pixels: dtype that images are packed in; for "uint8" SAM-2's input is resized here, and the picture, which may
        be far larger, is not kept.

        Raises:
            InvalidExample: whatever is wrong with the images, the prompt or the text; names `example.origin`.
        """
        compat = self.config.compat
        images, order = self._images(example, segmentation, {} if shared is None else shared, pixels)
        size = images[0].size if images else None
        prompt = self._prompt(example, size) if images else None
        tokens, spans = self.tokens(example, size, [images[i] for i in order])
        vision = _vision_places(len(tokens), spans, images, order)
        tokens[vision >= 0] = 0
        count = self.config.segmentation_tokens if segmentation and images else 0
        return EncodedExample(
            tokens=_after(count, tokens, 0),
            positions=rotary_positions(compat.positions, len(tokens), spans, count),
            vision=_after(count, vision, -1),
            segmentation=np.concatenate([np.arange(count, dtype=np.int32), np.full(len(tokens), -1, np.int32)]),
            images=images,
            prompt=prompt if count else None,
            origin=example.origin,
        )

    def reads_upright(self, example: Example) -> bool:
        """Whether the example's pictures are read as viewers show them, not as stored."""
        return reads_upright(example, self.config.compat)

    def tokens(
        self, example: Example, size: tuple[int, int] | None, images: Sequence[TokenGrid]
    ) -> tuple[np.ndarray, list[ImageSpan]]:
        """int32[n] tokens of the text, `<|image_pad|>` repeated for each of `images`, and where these stand.

        Raises:
            InvalidExample: a text that does not fit the images, cannot be tokenised or has no token.
        """
        text = prompt_text(example, size, self.config.compat)
        try:
            if not images and IMAGE_MARKER in example.text:  # what is left of it is a word (`Compat.marker_alone`)
                tokens, starts = np.array(self.tokenizer.ids(text), np.int32), np.zeros(0, int)
            else:
                tokens, starts = self.tokenizer.encode(text, [image.vision_tokens for image in images])
        except ValueError as error:
            raise InvalidExample(f"{example.origin}: {error}") from error
        if not len(tokens):
            raise InvalidExample(f"{example.origin}: the text {text!r} has no token; write something")
        merge = self.config.vision.spatial_merge_size
        grids = [(image.grid[0] // merge, image.grid[1] // merge) for image in images]
        return tokens, [ImageSpan(int(start), *grid) for start, grid in zip(starts, grids, strict=True)]

    def _prompt(self, example: Example, size: tuple[int, int]) -> EncodedPrompt:
        return encode_prompt(
            example.prompt,
            size,
            sam_size=self.config.sam2.image_size,
            points_per_side=self.config.points_per_side,
            compat=self.config.compat,
            origin=example.origin,
            upright=self.reads_upright(example),
        )

    def _images(
        self, example: Example, segmentation: bool, shared: dict, pixels: str
    ) -> tuple[tuple[EncodedImage, ...], list[int]]:
        """The example's distinct images, and for each place in `example.images` which of them stands there."""
        upright = self.reads_upright(example)
        keys = [image_key(source, upright=upright) for source in example.images]
        distinct = list(dict.fromkeys(keys))
        for number, key in enumerate(distinct):
            with_sam = segmentation and number == 0
            if key not in shared or (with_sam and shared[key].sam is None):
                source = example.images[keys.index(key)]
                picture = load_image(source, example.origin, upright=upright)
                shared[key] = self._image(picture, key, example.origin, with_sam, pixels)
        return tuple(shared[key] for key in distinct), [distinct.index(key) for key in keys]

    def _image(self, picture: np.ndarray, key: str, origin: str, with_sam: bool, pixels: str) -> EncodedImage:
        qwen = qwen_image(picture, self.config, origin)
        normalised = self.config.compat.sam_source == "qwen"
        sam = (qwen.pixels if normalised else picture) if with_sam else None
        resized = with_sam and pixels == "uint8"
        if resized:
            sam = sam_levels(sam, self.config.sam2.image_size)
        size = picture.shape[:2]
        key = sized_key(key, size)
        return EncodedImage(key, size, qwen.patches, qwen.patch_yx, qwen.grid, sam, normalised, resized)


def reads_upright(example: Example, compat: Compat) -> bool:
    """Whether the EXIF orientation of the example's pictures is applied under this behaviour."""
    return example.upright and compat.exif_orientation == "apply"


def image_key(source: ImageSource, *, upright: bool = False) -> str:
    """Identity of an image as read: the absolute path of a file, the SHA-256 digest of encoded bytes or of pixels; an
    upright reading is another than that of the pixels as stored."""
    if isinstance(source, ImagePixels):
        key = f"pixels:{source.digest}"
    elif isinstance(source, bytes):
        key = f"sha256:{hashlib.sha256(source).hexdigest()}"
    else:
        key = f"file:{os.path.abspath(source)}"
    return f"upright {key}" if upright else key


def sized_key(key: str, size: tuple[int, int]) -> str:
    """Identity of an image as read: a file whose size (H, W) changes during a run is another image from then on."""
    return f"{key} {size[1]}x{size[0]}"


def _vision_places(length: int, spans: list[ImageSpan], images, order: list[int]) -> np.ndarray:
    """int32[length]: index of the vision token that stands in each slot of the text, -1 = a word."""
    first = np.concatenate([[0], np.cumsum([image.vision_tokens for image in images])]).astype(np.int32)
    places = np.full(length, -1, np.int32)
    for span, number in zip(spans, order, strict=True):
        count = images[number].vision_tokens
        places[span.start : span.start + count] = first[number] + np.arange(count)
    return places


def _after(count: int, values: np.ndarray, filler: int) -> np.ndarray:
    return np.concatenate([np.full(count, filler, np.int32), values])
