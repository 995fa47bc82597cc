"""From examples to vectors with one model: what `virtue embed`, evaluation and people's own Python use."""

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from virtue_jax.config import Compat, Numerics, VirtueConfig
from virtue_jax.data.encoding.encode import EncodedExample, ExampleEncoder
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.example import Example, InvalidExample
from virtue_jax.data.formats.jsonl import parse_example
from virtue_jax.data.packing.need import need_of
from virtue_jax.embedding.look import Look
from virtue_jax.embedding.programs import Programs
from virtue_jax.embedding.rows import PackedRows, grown, image_shape, packed_rows, text_shape
from virtue_jax.model_directory import load_model
from virtue_jax.models.virtue import Virtue
from virtue_jax.ops.attention import CPU
from virtue_jax.parallel.mesh import MeshConfig, make_mesh, row_shards

WINDOW_IMAGES = 32  # examples with images whose pixels are in memory at once; as many are read ahead
WINDOW = 1024  # examples, with images or not
THREADS = 8  # that read, decode and resize
IN_FLIGHT = 4  # batches that the devices have been given and have not given back


class Embedder:
    """A model on the devices of a mesh, and what makes its input.

    Examples are packed into rows as in training, several to a row, so that a handful of programs is compiled whatever
    the sizes of the images; no embedding depends on what else is in its row or batch.

    Args:
        mesh: devices of this process; by default all that it has. Weights are on all of them, rows are split over them.
        image_rows, text_rows: rows of one call of the model on one device.

    Raises:
        ValueError: fewer rows than 1; a mesh with devices of other processes.
    """

    def __init__(
        self,
        config: VirtueConfig,
        model: Virtue,
        tokenizer: Tokenizer,
        *,
        mesh: Mesh | None = None,
        image_rows: int = 1,
        text_rows: int = 1,
    ):
        for name, rows in (("image_rows", image_rows), ("text_rows", text_rows)):
            if rows < 1:
                raise ValueError(f"{name} is {rows}: expected at least 1")
        mesh = make_mesh(MeshConfig(), jax.local_devices()) if mesh is None else mesh
        if mesh.is_multi_process:
            raise ValueError("the embedder's mesh has devices of other processes; give it those of this one alone")
        self.config = config
        self.encoder = ExampleEncoder(config, tokenizer)
        self._programs = Programs(model, mesh)
        self._image_rows, self._text_rows = image_rows * row_shards(mesh), text_rows * row_shards(mesh)

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike,
        *,
        compat: str | None = None,
        positions: str | None = None,
        dtype: str = "float32",
        mesh: Mesh | None = None,
        image_rows: int = 1,
        text_rows: int = 1,
    ) -> "Embedder":
        """An embedder from a model directory (`python -m converters import`, or `WORKDIR/model` of a training run).

        compat: "released" or "paper"; None = as the model was converted or trained. positions: "prefix", "sequential"
        or "mrope", in place of the compat's scheme. dtype: of weights and activations, "float32" or "bfloat16". The
        rest: as the class has it.

        Raises:
            ValueError, FileNotFoundError: a directory that is not a whole model; unknown names.
        """
        attention = CPU if jax.default_backend() == "cpu" else "xla"
        config, model = load_model(Path(directory), Numerics(dtype, dtype, attention))
        behaviour = config.compat if compat is None else Compat.preset(compat)
        if positions is not None:
            behaviour = dataclasses.replace(behaviour, positions=positions)
        config = dataclasses.replace(config, compat=behaviour)
        tokenizer = Tokenizer.load(Path(directory))
        return cls(config, model, tokenizer, mesh=mesh, image_rows=image_rows, text_rows=text_rows)

    def embed(
        self,
        examples: Iterable[Example | Mapping],
        *,
        segmentation: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """float32[N, D], unit length, in the order given.

        examples: `Example`s, or dicts as lines of `virtue embed`'s input file (relative paths: to the working
        directory). segmentation=False leaves the segmentation tokens out: the plain Qwen2-VL embedder.
        progress: called with the number of examples done.

        Raises:
            InvalidExample: the first example that cannot be embedded, by its origin; one example instead of a list.
        """
        if isinstance(examples, Example | Mapping | str | bytes):
            raise InvalidExample(
                f"examples is one {type(examples).__name__}; give a list of examples, if of one only: embed([example])"
            )
        examples = list(examples)
        embeddings = np.zeros((len(examples), self.config.text.hidden_size), np.float32)
        done = 0
        for numbers, vectors in self._vectors(examples, segmentation):
            embeddings[numbers] = vectors
            done += len(numbers)
            if progress is not None:
                progress(done)
        return embeddings

    def use(self, params: Mapping[str, jax.Array]) -> None:
        """Embeds with these parameters from now on; with the same shapes and dtypes nothing is compiled again. {} lets
        go of the arrays until the next call."""
        self._programs.use(params)

    def look(self, image, *, segmentation: bool = True) -> Look:
        """Runs both image towers over an image, which can then be pointed at many times.

        image: what the key "image" of `embed`'s dicts may be; of several, prompts point into the first.

        Raises:
            InvalidExample: an image that cannot be read.
        """
        example = parse_example({"image": image}, Path(), "image")
        return Look(self.encoder, self._programs, example, segmentation, self._image_rows)

    def _vectors(self, examples: Sequence, segmentation: bool) -> Iterator[tuple[list[int], np.ndarray]]:
        """Numbers of examples with their embeddings, as the devices give them back."""
        pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), thread_name_prefix="encode")
        running: deque = deque()
        try:
            for window in self._windows(examples, segmentation, pool):
                encoded = {number: future.result() for number, future in window.items()}
                for packed in self._packed(encoded, segmentation, pool.map):
                    running.append(
                        (packed.places, self._programs.read(packed.batch, self._programs.look(packed.batch)))
                    )
                    if len(running) == IN_FLIGHT:
                        yield _taken(*running.popleft())
            while running:
                yield _taken(*running.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _windows(
        self, examples: Sequence, segmentation: bool, pool: ThreadPoolExecutor
    ) -> Iterator[dict[int, Future[EncodedExample]]]:
        """Consecutive examples by number, being encoded; while one window is in use, the next one is."""
        ahead = None
        for members in _window_numbers([_has_image(example) for example in examples], self._image_rows):
            window = {i: pool.submit(self._encode, examples[i], i, segmentation) for i in members}
            if ahead is not None:
                yield ahead
            ahead = window
        if ahead is not None:
            yield ahead

    def _encode(self, example: Example | Mapping, number: int, segmentation: bool) -> EncodedExample:
        if not isinstance(example, Example):
            example = parse_example(example, Path(), f"example {number}")
        return self.encoder.encode(example, segmentation=segmentation)

    def _packed(
        self, encoded: Mapping[int, EncodedExample], segmentation: bool, each: Callable
    ) -> Iterator[PackedRows]:
        by_shape: dict = {}
        for number, example in encoded.items():
            shape = image_shape(self.config, segmentation) if example.images else text_shape()
            by_shape.setdefault(grown(shape, need_of([example])), {})[number] = example
        for shape, members in by_shape.items():
            count = self._image_rows if shape.patches else self._text_rows
            yield from packed_rows(members, shape, count, self.config, each=each)


def _taken(places: Sequence[tuple[int, int, int]], vectors: jax.Array) -> tuple[list[int], np.ndarray]:
    """Waits for a batch's result: the numbers of its examples, and their embeddings."""
    rows, columns, numbers = (list(x) for x in zip(*places, strict=True))
    return numbers, np.asarray(vectors)[rows, columns]


def _has_image(example: Example | Mapping) -> bool:
    if isinstance(example, Example):
        return bool(example.images)
    return isinstance(example, Mapping) and example.get("image") is not None


def _window_numbers(with_image: Sequence[bool], rows: int) -> Iterator[range]:
    """Consecutive numbers, as many as may be in memory at once and fill the rows of a few calls."""
    start = images = 0
    most = max(WINDOW_IMAGES, 8 * rows)
    for number, has_image in enumerate(with_image):
        if number - start == WINDOW or images + has_image > most:
            yield range(start, number)
            start, images = number, 0
        images += has_image
    if start < len(with_image):
        yield range(start, len(with_image))
