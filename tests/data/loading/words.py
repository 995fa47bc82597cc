"""A source of words, broken here and there, and a loader of it whose rows are too few for all that is drawn."""

from pathlib import Path

import numpy as np

from virtue_jax.batch import RowShape
from virtue_jax.config import HieraConfig, Sam2Config, TextConfig, VirtueConfig, VisionConfig
from virtue_jax.data.encoding.encode import ExampleEncoder
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.example import Example, InvalidExample, TrainingPair
from virtue_jax.data.loading.loader import training_loader
from virtue_jax.data.pair_source import PairRows

SPECIAL = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>")


class Words(PairRows):
    """Text pairs of many lengths, some of which share their positive; row i has i % 4 hard negatives.

    Those of `broken` cannot be read.
    """

    def __init__(self, count, name="word", broken=()):
        self.count, self.name, self.broken = count, name, set(broken)

    def __len__(self):
        return self.count

    def pair(self, row):
        if row in self.broken:
            raise InvalidExample(f"{self.origin(row)}: damaged")
        origin = self.origin(row)
        negatives = tuple(Example(f"not {i}", origin=f"{origin} not {i}") for i in range(row % 4))
        query = Example(f"{self.name} {row}" + " long" * (row * 7 % 11), origin=origin)
        return TrainingPair(query, Example(f"answer {row // 2}", origin=f"{origin} answer"), negatives)

    def origin(self, row):
        return f"{self.name}:{row}"


def make_encoder(golden):
    tokenizer = Tokenizer.load(Path(golden) / "tiny/vlm")
    text = TextConfig(1024, 64, 128, 1, 4, 2, (2, 3, 3), *(tokenizer.ids(t)[0] for t in SPECIAL))
    vision = VisionConfig(depth=1, embed_dim=32, num_heads=2, hidden_size=64)
    sam2 = Sam2Config(HieraConfig(8, 1, (1, 1, 1, 1), (2,)), image_size=64)
    return ExampleEncoder(VirtueConfig(sam2, vision, text), tokenizer)


TIGHT = [(RowShape(slots=40, examples=8, positives=2), 4), (RowShape(slots=24, examples=6), 4)]


def words_loader(encoder, source, **options):
    """Rows that are too few for all candidates, so that elements wait."""
    options = {"groups": TIGHT, "batch_size": 32, "seed": 1, "streams": 4, "negatives": 2, "bad_rows": 0.5} | options
    return training_loader([source] if isinstance(source, Words) else source, encoder, **options)


def same(first, second):
    return all(
        np.array_equal(a, b)
        for group, other in zip(first.groups, second.groups, strict=True)
        for a, b in zip(group, other, strict=True)
    )


def take(loader, steps):
    try:
        return [next(loader) for _ in range(steps)]
    finally:
        loader.close()


def queries(steps):
    """Origins of the queries, in order of packing."""
    flat = [o for step in steps for group in step.report.origins for row in group for o in row]
    return [o for o in flat if " " not in o]


BROKEN = (3, 11, 26)
