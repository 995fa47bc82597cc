"""From examples to vectors with one model: what `virtue embed`, evaluation and people's own Python use."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from virtue_jax.batch import RowShape
from virtue_jax.config import Compat, Numerics, VirtueConfig
from virtue_jax.data.encoding.encode import EncodedExample, ExampleEncoder
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.example import Example
from virtue_jax.data.formats.jsonl import parse_example
from virtue_jax.data.packing.first_fit import vision_places
from virtue_jax.data.packing.need import need_of, row_shape
from virtue_jax.data.packing.pack import pack_rows
from virtue_jax.model_directory import load_model
from virtue_jax.models.parameters import bind, parameters
from virtue_jax.models.virtue import Virtue

WINDOW = 64  # examples whose pixels are in memory at once


class Embedder:
    """Embeds examples one to a row, so that no embedding depends on what else is in the batch.

    Rows are padded to a few lengths, one compiled program each. `image_rows`, `text_rows`: rows per call of the model,
    at least 1, else a ValueError.
    """

    def __init__(
        self, config: VirtueConfig, model: Virtue, tokenizer: Tokenizer, *, image_rows: int = 4, text_rows: int = 64
    ):
        for name, rows in (("image_rows", image_rows), ("text_rows", text_rows)):
            if rows < 1:
                raise ValueError(f"{name} is {rows}: expected at least 1")
        self.config = config
        self.encoder = ExampleEncoder(config, tokenizer)
        self._params = parameters(model)
        self._rows = {True: image_rows, False: text_rows}
        options = _compiler_options(model.text.numerics.compute)
        self._run = jax.jit(lambda params, batch: bind(model, params)(batch), compiler_options=options)

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike,
        *,
        compat: str | None = None,
        positions: str | None = None,
        dtype: str = "float32",
        image_rows: int = 4,
        text_rows: int = 64,
    ) -> "Embedder":
        """An embedder from a model directory (`python -m converters import`, or `WORKDIR/model` of a training run).

        compat: "released" or "paper"; None = as the model was converted or trained. positions: "prefix", "sequential"
        or "mrope", in place of the compat's scheme. dtype: of weights and activations, "float32" or "bfloat16".

        Raises:
            ValueError, FileNotFoundError: a directory that is not a whole model; unknown names.
        """
        config, model = load_model(Path(directory), Numerics(compute=dtype, params=dtype))
        behaviour = config.compat if compat is None else Compat.preset(compat)
        if positions is not None:
            behaviour = dataclasses.replace(behaviour, positions=positions)
        config = dataclasses.replace(config, compat=behaviour)
        return cls(config, model, Tokenizer.load(Path(directory)), image_rows=image_rows, text_rows=text_rows)

    def embed(
        self,
        examples: Sequence[Example | Mapping],
        *,
        segmentation: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """float32[N, D], unit length, in the order given.

        examples: `Example`s, or dicts as lines of `virtue embed`'s input file (relative paths: to the working
        directory). segmentation=False leaves the segmentation tokens out: the plain Qwen2-VL embedder.
        progress: called with the number of examples done.

        Raises:
            InvalidExample: the first example that cannot be embedded, by its origin.
        """
        out = np.zeros((len(examples), self.config.text.hidden_size), np.float32)
        done = 0
        for start in range(0, len(examples), WINDOW):
            window = [
                self._encode(examples[i], i, segmentation) for i in range(start, min(start + WINDOW, len(examples)))
            ]
            for shape, members in _by_shape(window):
                for part in _parts(members, self._rows[shape.vision_rows > 0]):
                    out[[start + i for i in part]] = self._embed_rows([window[i] for i in part], shape)
                    done += len(part)
                    if progress is not None:
                        progress(done)
        return out

    def use(self, params: Mapping[str, jax.Array]) -> None:
        """Embeds with these parameters from now on; with the same shapes, dtypes and places nothing is compiled again.
        Until the next call, {} lets go of the arrays."""
        self._params = params

    def _encode(self, example: Example | Mapping, index: int, segmentation: bool) -> EncodedExample:
        if not isinstance(example, Example):
            example = parse_example(example, Path(), f"example {index}")
        return self.encoder.encode(example, segmentation=segmentation)

    def _embed_rows(self, encoded: list[EncodedExample], shape: RowShape) -> np.ndarray:
        # A power of two of rows: the last, smaller parts cost few further programs.
        rows = 1 << (len(encoded) - 1).bit_length()
        padded = encoded + encoded[:1] * (rows - len(encoded))
        places = vision_places([need_of([example]) for example in padded], shape)
        batch = pack_rows([[example] for example in padded], shape, self.config, vision=places)
        return np.asarray(self._run(self._params, batch))[: len(encoded), 0]


def _compiler_options(compute: str) -> dict[str, str] | None:
    """On a CPU, XLA computes bfloat16 in float32, and its loop-invariant code motion would convert the weights of all
    layers before the loop over them (8 GB at the 2B size) instead of one layer's inside it."""
    if compute == "float32" or jax.devices()[0].platform != "cpu":
        return None
    return {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}


def _by_shape(encoded: list[EncodedExample]) -> Iterator[tuple[RowShape, list[int]]]:
    groups: dict[RowShape, list[int]] = {}
    for i, example in enumerate(encoded):
        shape = row_shape([[example]])
        shape = dataclasses.replace(
            shape, slots=_bucket(shape.slots, 16), patches=_bucket(shape.patches, 64), points=_bucket(shape.points, 4)
        )
        groups.setdefault(shape, []).append(i)
    yield from groups.items()


def _bucket(length: int, least: int) -> int:
    """`length` rounded up to a multiple of a quarter of its own power of two: at most a quarter is padding."""
    step = max(least, 1 << max(length.bit_length() - 3, 0))
    return -(-length // step) * step


def _parts(members: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(members), size):
        yield members[start : start + size]
