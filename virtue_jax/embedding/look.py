"""An image looked at once, then pointed at many times."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from virtue_jax.data.encoding.encode import EncodedExample, EncodedImage, ExampleEncoder
from virtue_jax.data.example import Example, InvalidExample
from virtue_jax.data.formats.jsonl import parse_example
from virtue_jax.data.packing.need import need_of
from virtue_jax.embedding.programs import Programs
from virtue_jax.embedding.rows import grown, image_shape, packed_rows, same_rows


class Look:
    """Both towers' outputs for one image; made by `Embedder.look`.

    A prompt then costs SAM-2's prompt encoder and two-way transformer, the connector and the language model; its
    embedding is that of the same example embedded from scratch.
    """

    def __init__(self, encoder: ExampleEncoder, programs: Programs, example: Example, segmentation: bool, rows: int):
        self._encoder, self._programs, self._segmentation, self._rows = encoder, programs, segmentation, rows
        self._sources = example.images
        self._shared: dict[str, EncodedImage] = {}
        encoded = encoder.encode(example, segmentation=segmentation, shared=self._shared)
        self._shape = grown(image_shape(encoder.config, segmentation), need_of([encoded]))
        # In every row, so that each holds the outputs that its prompts need.
        batch, self._vision_rows = same_rows(encoded, self._shape, rows, encoder.config)
        self._seen = programs.look(batch)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image in pixels."""
        return next(iter(self._shared.values())).size

    def point(self, *, box=None, points=None, mask=None, text: str = "", **more) -> np.ndarray:
        """float32[D], unit length: the embedding of this image with a prompt and a text, all of them optional.

        box, points, mask, text, and more (`sam_box`, `sam_point`): as keys of `Embedder.embed`'s dicts.

        Raises:
            InvalidExample: a prompt that the image or the model's behaviour does not allow.
        """
        return self.point_many([{"box": box, "points": points, "mask": mask, "text": text} | more])[0]

    def point_many(self, prompts: Sequence[Mapping]) -> np.ndarray:
        """float32[N, D]: `point(**prompt)` of each prompt, several to a row. Raises as `point`, naming the prompt."""
        if isinstance(prompts, Mapping):
            raise InvalidExample("prompts is one dict; give a list of prompts, or use point(**prompt)")
        by_shape: dict = {}
        for number, prompt in enumerate(prompts):
            encoded = self._encode(prompt, f"prompt {number}")
            by_shape.setdefault(grown(self._shape, need_of([encoded])), {})[number] = encoded
        embeddings = np.zeros((len(prompts), self._encoder.config.text.hidden_size), np.float32)
        running = []
        for shape, members in by_shape.items():
            for packed in packed_rows(
                members, shape, self._rows, self._encoder.config, vision=self._vision_rows, each=_no_pixels
            ):
                running.append((packed.places, self._programs.read(packed.batch, self._seen)))
        for places, vectors in running:
            rows, columns, numbers = (list(x) for x in zip(*places, strict=True))
            embeddings[numbers] = np.asarray(vectors)[rows, columns]
        return embeddings

    def _encode(self, prompt: Mapping, origin: str) -> EncodedExample:
        # The image stands for itself in what is checked, and is not read again.
        record = {"image": "looked at"} | {key: value for key, value in prompt.items() if value is not None}
        example = dataclasses.replace(parse_example(record, Path(), origin), images=self._sources)
        return self._encoder.encode(example, segmentation=self._segmentation, shared=self._shared)


def _no_pixels(_write, _writes) -> tuple:
    return ()
