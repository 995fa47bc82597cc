"""The training data that a configuration names, as a loader of batches."""

import jax

from virtue_jax.config import VirtueConfig
from virtue_jax.data.encode import ExampleEncoder
from virtue_jax.data.jsonl import JsonlTraining
from virtue_jax.data.loader import PairSource, TrainingLoader, training_loader
from virtue_jax.data.scar import ScarTraining
from virtue_jax.data.shared_images import SharedImages
from virtue_jax.data.tokens import Tokenizer
from virtue_jax.train.config import DataConfig, TrainConfig


def open_source(config: DataConfig, seed: int) -> PairSource:
    """Raises:
    ValueError: an unknown kind. InvalidExample: files that are not of that kind.
    """
    if config.kind == "jsonl":
        return JsonlTraining(config.path)
    if config.kind != "scar":
        raise ValueError(f"data.kind {config.kind!r} is not one of scar, jsonl")
    weights = {"box": config.box_weight, "point": config.point_weight, "mask": config.mask_weight}
    rows = ScarTraining(config.path, image_root=config.image_root or None, prompts=weights, seed=seed)
    return SharedImages(rows, config.queries.examples) if config.queries.examples > 1 else rows


def make_loader(config: TrainConfig, source: PairSource, virtue: VirtueConfig, tokenizer: Tokenizer) -> TrainingLoader:
    """This process's share of every global batch."""
    return training_loader(
        source,
        ExampleEncoder(virtue, tokenizer),
        query_shape=config.data.queries,
        target_shape=config.data.targets,
        global_batch=config.batch_size,
        seed=config.seed,
        negatives=config.data.hard_negatives,
        shard=(jax.process_index(), jax.process_count()),
        worker_count=config.data.workers,
    )
