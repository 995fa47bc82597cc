"""The run that is to be compiled: its row groups for another batch, and the useful work of a step on the published data
sets' lengths, without any data."""

import dataclasses
import math
from collections.abc import Sequence

from virtue_jax.config import VirtueConfig
from virtue_jax.data.config import RowGroup
from virtue_jax.data.packing.first_fit import Need
from virtue_jax.data.row_groups.published import published_needs
from virtue_jax.data.row_groups.simulate import NeedSource, SampleOrder, simulate
from virtue_jax.train.cost.work import Work
from virtue_jax.train.step.config import TrainConfig

_ELEMENTS = 1000  # of every subset, to take lengths from
_STREAMS, _WARMUP, _STEPS = 4, 4, 6  # simulated


def with_batch(config: TrainConfig, batch: int, shards: int) -> TrainConfig:
    """The run with another number of pairs in a step, and as many more or fewer rows, rounded up to what `shards`
    devices (mesh axes data and fsdp) divide; as many pairs to a packing stream as before.

    Raises:
        ValueError: no row groups to scale.
    """
    if not config.data.rows:
        raise ValueError("the run file leaves data.rows open; print them with `virtue rows` and write them into it")
    share = batch / config.batch_size

    def scaled(group: RowGroup) -> RowGroup:
        unit = shards * max(1, group.micro_batches)
        return dataclasses.replace(group, rows=math.ceil(group.rows * share / unit) * unit)

    rows = {name: scaled(group) for name, group in config.data.rows.items()}
    wanted = max(1, round(config.data.streams * share))
    divides = math.gcd(batch, *(group.rows for group in rows.values()))
    streams = max(n for n in range(1, wanted + 1) if divides % n == 0)
    data = dataclasses.replace(config.data, rows=rows, streams=streams)
    return dataclasses.replace(config, data=data, batch_size=batch)


def published_work(config: TrainConfig, virtue: VirtueConfig) -> tuple[float, Work] | None:
    """(pairs, work) of a mean step on lengths like those of SCaR-train or MMEB-train, whichever the run's sources are,
    packed as its loader packs; None where they are of another kind."""
    kinds = {source.kind for source in config.data.sources.values()}
    name = {frozenset({"scar"}): "scar", frozenset({"mmeb"}): "mmeb"}.get(frozenset(kinds))
    if name is None:
        return None
    share = config.data.share_images
    sources = published_needs(name, virtue, count=_ELEMENTS, mixture="equal", share_images=share)
    figures = simulate(
        SampleOrder(sources, config.data.interleave),
        [(group.shape, group.rows) for group in config.data.rows.values()],
        batch_size=config.batch_size,
        streams=config.data.streams,
        steps=_STEPS,
        warmup=_WARMUP,
        only=_STREAMS,
    )
    return figures.pairs, _scaled(_mean_pair(sources), figures.pairs)


def _mean_pair(sources: Sequence[NeedSource]) -> dict[str, float]:
    """Work of the mean pair of a mixture."""
    weights = sum(source.weight for source in sources)
    mean = dict.fromkeys((field.name for field in dataclasses.fields(Work)), 0.0)
    for source in sources:
        scale = source.weight / weights / sum(source.pairs)
        for element in source.elements:
            for need in element:
                for name, value in _work(need).items():
                    mean[name] += value * scale
    return mean


def _work(need: Need) -> dict[str, float]:
    patches = [count for _, count, _ in need.images]
    return {
        "tokens": need.slots,
        "token_pairs": need.slots**2 / need.examples,  # of its examples, equally long
        "patches": sum(patches),
        "patch_pairs": sum(count**2 for count in patches),
        "images": sum(prompted for _, _, prompted in need.images),
        "prompts": need.prompts,
        "prompt_tokens": need.prompts * need.points,
    }


def _scaled(mean: dict[str, float], pairs: float) -> Work:
    return Work(**{name: round(value * pairs) for name, value in mean.items()})
