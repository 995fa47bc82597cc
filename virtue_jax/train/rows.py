"""The row groups of a run: those of its configuration, or chosen from the lengths of its data."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from virtue_jax.batch import RowShape
from virtue_jax.config import VirtueConfig
from virtue_jax.data.config import DataConfig, RowGroup
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.pair_source import PairSource
from virtue_jax.data.row_groups.choose import Chosen, Demand, choose_rows
from virtue_jax.data.row_groups.measure import LengthMeasure, measured_needs
from virtue_jax.data.row_groups.published import published_needs
from virtue_jax.data.row_groups.simulate import NeedSource
from virtue_jax.data.sources.open_data import open_sources
from virtue_jax.model_directory import load_config
from virtue_jax.models.parameters import abstract_virtue, parameters, select
from virtue_jax.ops.splash import FAST_SPLASH_BLOCK
from virtue_jax.train.cost.flops import executed_flops
from virtue_jax.train.step.config import TrainConfig

_MEASURED = 2000  # elements of all sources together
_STEP = 128  # of slots, and of patches where images have more
_MERGED = 4  # patches of a vision token


def resolve_rows(
    config: TrainConfig, sources: Sequence[PairSource], virtue: VirtueConfig, tokenizer: Tokenizer, *, shards: int
) -> DataConfig:
    """The data configuration with its row groups; those given stay, else they are chosen from a sample of the sources.

    config: its attention is resolved. sources: one per `config.data.sources`. shards: devices that rows are split over
    (mesh axes data and fsdp). A function of its arguments alone, so that all processes choose the same. A resumed run
    must keep the groups it began with, on whatever mesh: store `config.to_dict(result)["rows"]`, which `from_dict` of a
    `DataConfig` reads.

    Raises:
        InvalidExample: sources of which most rows cannot be read. ValueError: as `choose_rows`.
    """
    if config.data.rows:
        return config.data
    needs = source_needs(config, sources, virtue, tokenizer)
    return dataclasses.replace(config.data, rows=row_groups(choose(config, needs, virtue, shards=shards)))


def stated_needs(config: TrainConfig, published: str = "") -> tuple[list[NeedSource], VirtueConfig]:
    """Lengths of the data that a configuration names, or made-up ones of a `published` data set, for its model.

    Raises:
        ValueError: a model from scratch; as `open_sources`. FileNotFoundError: no such model.
    """
    directory = config.model.directory
    if not directory:
        raise ValueError(
            "config.model.directory is needed, for the tokenizer that lengths are counted with; a run from scratch "
            "chooses its rows when it starts"
        )
    virtue = load_config(directory)
    if published:
        return published_needs(published, virtue, mixture="equal", share_images=config.data.share_images), virtue
    return source_needs(config, open_sources(config.data, config.seed), virtue, Tokenizer.load(directory)), virtue


def source_needs(
    config: TrainConfig, sources: Sequence[PairSource], virtue: VirtueConfig, tokenizer: Tokenizer
) -> list[NeedSource]:
    """Lengths of a sample of each source, with its weight in the mixture."""
    measure = LengthMeasure(virtue, tokenizer, config.data.hard_negatives)
    count = max(200, _MEASURED // len(sources))
    return [
        measured_needs(source, measure, count=count, seed=config.seed, weight=settings.weight)
        for source, settings in zip(sources, config.data.sources.values(), strict=True)
    ]


def choose(config: TrainConfig, needs: Sequence[NeedSource], virtue: VirtueConfig, *, shards: int) -> Chosen:
    """`choose_rows` for a run: what a row costs is what the compiled step executes on it."""
    images = any(need.images for source in needs for element in source.elements for need in element)
    largest = virtue.max_pixels // virtue.vision.patch_size**2 if images else 0
    slot_step, patch_step = length_steps(config.numerics.attention, largest)
    demand = Demand(
        sources=needs,
        batch_size=config.batch_size,
        streams=config.data.streams,
        devices=shards,
        largest_patches=largest,
        cost=row_cost(config, virtue),
        slot_step=slot_step,
        patch_step=patch_step,
        interleave=config.data.interleave,
    )
    return choose_rows(demand)


def length_steps(attention: str, largest_patches: int) -> tuple[int, int]:
    """(slots, patches) that a row's are multiples of: what suits the attention backend, of which only splash is slow on
    others; small images take what they need."""
    if attention == "splash":
        return FAST_SPLASH_BLOCK, FAST_SPLASH_BLOCK
    return _STEP, _STEP if largest_patches > _STEP else _MERGED


def row_cost(config: TrainConfig, virtue: VirtueConfig) -> Callable[[RowShape], float]:
    """FLOPs that a step executes for one row of a shape (`train/cost/flops.py`), layers rematerialised where that is
    still to be chosen."""
    numerics = config.numerics
    if numerics.remat == "auto":
        numerics = dataclasses.replace(numerics, remat="layer")
    trainable = select(sorted(parameters(abstract_virtue(virtue, numerics))), config.trainable)
    return functools.cache(lambda shape: executed_flops(virtue, [RowGroup(shape, 1, 1)], numerics, trainable).total)


def row_groups(chosen: Chosen) -> dict[str, RowGroup]:
    """By name: images_1, images_2, ... by patch bucket, then text."""
    names = [
        f"images_{number}" if shape.patches else "text" for number, (shape, _) in enumerate(chosen.groups, start=1)
    ]
    return {name: RowGroup(shape, rows) for name, (shape, rows) in zip(names, chosen.groups, strict=True)}
