"""A tiny VIRTUE with an adapter, and random packed rows for it, for tests of the step on many devices."""

import numpy as np

from virtue_jax.batch import NO_TOKEN, NOT_A_POINT, QUERY, TARGET, Batch, RowShape
from virtue_jax.config import (
    AdapterConfig,
    HieraConfig,
    Numerics,
    Sam2Config,
    TextConfig,
    VirtueConfig,
    VisionConfig,
)
from virtue_jax.data.config import DataConfig, RowGroup, SourceConfig
from virtue_jax.data.packing.layout import batch_layout
from virtue_jax.train.step.config import ModelConfig, TrainConfig
from virtue_jax.train.step.optimizer import OptimizerConfig

IMAGE_ROW = RowShape(
    slots=32, examples=3, positives=2, vision_rows=2, patches=8, images=2, prompts=2, points=3, masks=False
)
TEXT_ROW = RowShape(slots=32, examples=4, positives=2)  # as long as the others: both share a run


def geometry(dropout: float = 0.1) -> VirtueConfig:
    """Dimensions that divide by 8, so that every mesh of 8 devices fits."""
    hiera = HieraConfig(8, 1, (1, 1, 2, 1), (3,), (8, 4, 4, 4), (4, 4))
    sam2 = Sam2Config(hiera, d_model=16, image_size=64, decoder_heads=2, decoder_mlp_dim=32, mask_in_chans=4)
    text = TextConfig(64, 64, 128, 3, 8, 2, (1, 1, 2), 60, 61, 62)
    vision = VisionConfig(2, 64, 4, 64)
    return VirtueConfig(sam2, vision, text, AdapterConfig(rank=2, alpha=4.0, dropout=dropout))


def run_config(**changes) -> TrainConfig:
    """rows: 8 with images and 8 of text; `micro`: their micro-batches."""
    micro = changes.pop("micro", 1)
    rows = {"images": RowGroup(IMAGE_ROW, 16, micro), "text": RowGroup(TEXT_ROW, 16, micro)}
    values = {
        "model": ModelConfig(directory="none"),
        "data": DataConfig({"none": SourceConfig("none")}, rows),
        "steps": 10,
        "batch_size": 64,
        "optimizer": OptimizerConfig(1e-3, warmup_steps=0, decay="constant"),
        "numerics": Numerics(),
    }
    return TrainConfig(**(values | changes))


def row_groups(config: TrainConfig, virtue: VirtueConfig, seed: int = 0) -> tuple[Batch, ...]:
    """Random rows: queries in image rows (and some targets), the rest of the targets in text rows."""
    rng = np.random.default_rng(seed)
    groups = [_group(rng, group, virtue) for group in config.data.rows.values()]
    queries = [(g, r, k) for g in (0,) for r, k in zip(*np.nonzero(groups[0].side == QUERY), strict=True)]
    free = [
        (g, r, k)
        for g, group in enumerate(groups)
        for r, k in zip(*np.nonzero((group.side == TARGET) & group.valid), strict=True)
    ]
    order = rng.permutation(len(free))
    for number, (g, r, k) in enumerate(queries):
        if groups[g].valid[r, k]:
            groups[g].positives[r, k, 0] = number
            target_group, row, place = free[order[number % len(free)]]
            if number < len(free):
                groups[target_group].content[row, place] = number
            groups[g].positives[r, k, 1] = (number * 7) % len(queries) if number % 3 == 0 else -1
    for number, place in enumerate(order[len(queries) :]):
        g, r, k = free[place]
        # Hard negatives; and, here and there, a positive again, which other dropout makes another embedding.
        groups[g].content[r, k] = number if number % 2 else 10_000 + number
    return tuple(groups)


def _group(rng, group: RowGroup, virtue: VirtueConfig) -> Batch:
    shape, rows = group.shape, group.rows
    layout = batch_layout(shape, sam_size=virtue.sam2.image_size, patch_dim=virtue.vision.patch_dim)
    batch = Batch(**{name: np.zeros((rows, *tail), dtype) for name, (dtype, tail) in layout.items()})
    batch.content[:] = batch.positives[:] = -1
    length = shape.slots // shape.examples
    for r in range(rows):
        for k in range(shape.examples):
            if rng.random() < 0.1 and k:
                break
            place = slice(k * length, (k + 1) * length - int(rng.integers(0, 3)))
            batch.tokens[r, place] = rng.integers(1, 60, place.stop - place.start)
            batch.segments[r, place] = k + 1
            batch.positions[r, :, place] = np.arange(place.stop - place.start)
            batch.pool[r, k] = place.stop - 1
            batch.valid[r, k] = True
            batch.side[r, k] = QUERY if shape.images and k < shape.prompts else TARGET
        if shape.images:
            _images(rng, batch, r, shape, virtue, length)
    return batch


def _images(rng, batch: Batch, r: int, shape: RowShape, virtue: VirtueConfig, length: int) -> None:
    tokens = virtue.segmentation_tokens
    batch.vision_slot[r] = batch.prompt_slot[r] = -1
    batch.prompt_labels[r] = NO_TOKEN
    batch.patches[r] = rng.standard_normal(batch.patches.shape[1:])
    batch.sam_images[r] = rng.standard_normal(batch.sam_images.shape[1:])
    batch.patch_yx[r] = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * (shape.patches // 4))
    batch.patch_segments[r] = np.repeat(np.arange(1, shape.patches // 4 + 1), 4)
    for m in range(min(shape.prompts, int(batch.valid[r].sum()))):
        start = m * length
        batch.prompt_slot[r, start : start + tokens] = m * tokens + np.arange(tokens)
        batch.vision_slot[r, start + tokens] = m * shape.patches // 4
        batch.tokens[r, start : start + tokens + 1] = 0
        batch.prompt_image[r, m] = m
        batch.prompt_points[r, m] = rng.uniform(0, virtue.sam2.image_size, batch.prompt_points.shape[2:])
        batch.prompt_labels[r, m] = [1, NOT_A_POINT, NO_TOKEN]
