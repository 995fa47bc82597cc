"""Training pairs -> one batch: which example goes into which row, and which pair id it gets."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from virtue_jax.batch import QUERY, TARGET, Batch, RowShape
from virtue_jax.data.encode import EncodedImage, ExampleEncoder
from virtue_jax.data.example import Example, TrainingPair
from virtue_jax.data.pack import pack_rows


class TrainingBatch(NamedTuple):
    """One process's part of a global batch: a row group of queries and a row group of targets.

    Query row r holds the queries of the r-th element drawn from the source. Each pair has `1 + negatives` target rows,
    the positive first; places without a hard negative, or without a pair, are empty rows (valid False). Pair ids are
    `content_id`s.
    """

    queries: Batch
    targets: Batch


@dataclass(frozen=True)
class PairPacker:
    """Encodes pairs and packs them into rows; the one place that decides which example goes into which row."""

    encoder: ExampleEncoder
    query_shape: RowShape
    target_shape: RowShape
    negatives: int = 0
    seed: int = 0

    def pack(self, elements: Sequence[TrainingPair | Sequence[TrainingPair]], first: int = 0) -> TrainingBatch:
        """elements: pairs, or groups of pairs whose queries share a row. `first`: place of the first one in the endless
        order, which decides the negatives drawn."""
        queries, targets = [], []
        for place, element in enumerate(elements, start=first):
            pairs = [element] if isinstance(element, TrainingPair) else list(element)
            queries.append([(pair.query, content_id(pair.positive)) for pair in pairs])
            row_targets = []
            for number, pair in enumerate(pairs):
                chosen = [pair.positive, *self._draw(pair.negatives, (place, number))]
                row_targets += [[(example, content_id(example))] for example in chosen]
            room = self.query_shape.examples * (1 + self.negatives)
            targets += row_targets + [[]] * (room - len(row_targets))
        return TrainingBatch(
            self._rows(queries, self.query_shape, QUERY),
            self._rows(targets, self.target_shape, TARGET),
        )

    def _draw(self, negatives: Sequence[Example], place: tuple[int, int]) -> list[Example]:
        if len(negatives) <= self.negatives:
            return list(negatives)
        order = np.random.default_rng([self.seed, *place]).permutation(len(negatives))
        return [negatives[i] for i in sorted(order[: self.negatives].tolist())]

    def _rows(self, rows: Sequence[Sequence[tuple[Example, int]]], shape: RowShape, side: int) -> Batch:
        config = self.encoder.config
        encoded = []
        for row in rows:
            shared: dict[str, EncodedImage] = {}
            encoded.append([self.encoder.encode(example, shared=shared) for example, _ in row])
        return pack_rows(
            encoded,
            shape,
            segmentation_tokens=config.segmentation_tokens,
            sam_size=config.sam2.image_size,
            patch_dim=config.vision.patch_dim,
            sides=[[side] * len(row) for row in rows],
            pairs=[[pair for _, pair in row] for row in rows],
        )


def content_id(example: Example) -> int:
    """31 bits that are the same for equal text, images (path or bytes) and prompt, on every process and in every run.

    Queries with equal positives share their pair id, so that the loss does not take one's positive for the other's
    negative; likewise a hard negative that happens to be another query's positive. Two different contents agree by
    chance once in 2**31: then one target counts as no negative of one query.
    """
    digest = hashlib.blake2b(digest_size=8)
    prompt = example.prompt
    mask = None if prompt is None else prompt.mask
    parts = [example.text, *example.images]
    if prompt is not None:
        parts.append(repr((prompt.box, prompt.points, prompt.frame)))
    if mask is not None:
        parts.append(np.packbits(mask).tobytes() if isinstance(mask, np.ndarray) else mask)
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return int.from_bytes(digest.digest(), "little") & 0x7FFFFFFF
