"""What one device holds at the worst moment of a step, estimated from shapes; and the cheapest settings that fit.

The three stages of a step (`train/step/stages.py`) run one after another; parameters, optimizer, the batch and the
next one stay throughout. What a backward pass keeps of the language model is not guessed: the model is traced at its
real width with a few layers, and the arrays that its differentiation carries from forward to backward are counted
(`kept_by_layers`). Compilers share and fuse buffers, so that this is an estimate: compare with what the compiled
stages take (`train/step/program_memory.py`), which `virtue train` and `virtue compile` print.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from virtue_jax.config import Numerics
from virtue_jax.data.config import RowGroup
from virtue_jax.data.packing.layout import batch_layout
from virtue_jax.train.cost.activations import (
    Run,
    activations,
    array_bytes,
    gathered_layer,
    itemsize,
    layer_work,
    tower_work,
    trained_towers,
)
from virtue_jax.train.cost.flops import executed_flops
from virtue_jax.train.step.chunks import run_together
from virtue_jax.train.step.towers import MOST_IMAGES, MOST_PATCHES

MARGIN = 0.07  # of a device's memory, left free; the compiler took what was estimated (BENCHMARKS.md, "TPU memory")
CHEAPEST_FIRST = ("none", "dots", "outputs", "layer")


@dataclass(frozen=True)
class Estimate:
    """Bytes of one device by part, at the moment of a step that needs most."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def largest(self, count: int = 4) -> str:
        parts = sorted(self.parts.items(), key=lambda part: -part[1])[:count]
        return ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in parts)


@dataclass(frozen=True)
class Choice:
    """numerics and row groups (by name) with nothing left open, and what they are estimated to take."""

    numerics: Numerics
    groups: dict[str, RowGroup]
    estimate: Estimate


def choose(run: Run, groups: Mapping[str, RowGroup], device_bytes: int, margin: float = MARGIN) -> Choice:
    """Fills in remat "auto" and micro_batches 0: of all that fits `device_bytes` less the margin, what executes the
    fewest FLOPs, then what has the fewest micro-batches. What the configuration gives is left as it is.

    Raises:
        ValueError: nothing fits; tells what the least takes, and its largest parts.
    """
    room = int(device_bytes * (1 - margin))
    policies = CHEAPEST_FIRST if run.numerics.remat == "auto" else (run.numerics.remat,)
    tried = [_fewest_parts(replace(run, numerics=replace(run.numerics, remat=p)), groups, room) for p in policies]
    fitting = [choice for choice in tried if choice.estimate.total <= room]
    if not fitting:
        least = min(tried, key=lambda choice: choice.estimate.total)
        raise ValueError(
            f"a step needs an estimated {least.estimate.total / 2**30:.2f} GiB per device even with remat "
            f"{least.numerics.remat!r} and {_counts(least)} micro-batches, {room / 2**30:.2f} GiB are there (of "
            f"{device_bytes / 2**30:.2f}, less {margin:.0%}). Largest: {least.estimate.largest()}. Take more devices, "
            "a larger mesh.fsdp, fewer or shorter rows, or data.pixels='uint8'"
        )

    def cost(choice: Choice) -> tuple[float, int]:
        flops = executed_flops(run.virtue, choice.groups.values(), choice.numerics, set(run.trainable))
        return flops.total, sum(group.micro_batches for group in choice.groups.values())

    return min(fitting, key=cost)


def estimate(run: Run, groups: Mapping[str, RowGroup]) -> Estimate:
    """The largest of the step's moments; micro_batches 0 counts as 1, remat "auto" as "none"."""
    stay = _what_stays(run, groups.values())
    moments = (_towers_stage(run, groups.values()), *_gradients_stage(run, groups.values()), _update_stage(run))
    most = max(moments, key=lambda parts: sum(parts.values()))
    return Estimate({name: size for name, size in (stay | most).items() if size})


def device_memory(device: jax.Device) -> int | None:
    """Bytes that a device says it has for programs; None where it does not say (CPUs)."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def _fewest_parts(run: Run, groups: Mapping[str, RowGroup], room: int) -> Choice:
    """Cuts the row group with the largest micro-batches, and those that run together with it, into the next larger
    number that divides, until all fits."""
    open_groups = {name for name, group in groups.items() if not group.micro_batches}
    chosen = {name: replace(group, micro_batches=max(1, group.micro_batches)) for name, group in groups.items()}
    while True:
        estimated = estimate(run, chosen)
        further = {name: _next_parts(run, chosen[name]) for name in open_groups}
        further = {name: parts for name, parts in further.items() if parts}
        if estimated.total <= room or not further:
            return Choice(run.numerics, chosen, estimated)
        largest = chosen[max(further, key=lambda name: _one_part(run, chosen[name]))]
        cut = [name for name in further if len(_together([chosen[name], largest])) == 1]
        chosen |= {name: replace(chosen[name], micro_batches=further[name]) for name in cut}


def _next_parts(run: Run, group: RowGroup) -> int | None:
    rows = group.rows // run.row_shards
    more = [n for n in range(group.micro_batches + 1, rows + 1) if rows % n == 0]
    return more[0] if more else None


def _one_part(run: Run, group: RowGroup) -> int:
    rows = _part_rows(run, group)
    return max(activations(run, group.shape, rows), tower_work(run, group.shape, rows))


def _counts(choice: Choice) -> str:
    return ", ".join(f"{group.micro_batches} ({name})" for name, group in choice.groups.items())


def _part_rows(run: Run, group: RowGroup) -> int:
    """Rows of one micro-batch on one device."""
    return max(1, group.rows // (run.row_shards * max(1, group.micro_batches)))


def _what_stays(run: Run, groups: Iterable[RowGroup]) -> dict[str, int]:
    trainable = array_bytes(run.trainable.values())
    batch = sum(_batch_bytes(run, group) for group in groups)
    return {
        "frozen parameters": array_bytes(run.frozen.values()),
        "trainable parameters": trainable,
        "optimizer": 2 * trainable,
        "batch and the next one": 2 * batch,
    }


def _batch_bytes(run: Run, group: RowGroup) -> int:
    virtue = run.virtue
    layout = batch_layout(
        group.shape, sam_size=virtue.sam2.image_size, patch_dim=virtue.vision.patch_dim, pixels=run.pixels
    )
    size = sum(math.prod(tail) * jnp.dtype(dtype).itemsize for dtype, tail in layout.values())
    return size * group.rows // run.row_shards


def _tower_outputs(run: Run, group: RowGroup) -> int:
    """Vision tokens and fused maps of a row group on one device."""
    virtue, shape = run.virtue, group.shape
    tokens = shape.vision_rows * shape.patches // virtue.vision.spatial_merge_size**2 * virtue.vision.hidden_size
    maps = shape.prompts * virtue.sam2.embedding_size**2 * virtue.sam2.d_model
    return (tokens + maps) * group.rows // run.row_shards * itemsize(run)


def _towers_stage(run: Run, groups: Iterable[RowGroup]) -> dict[str, int]:
    """`train/step/towers.py`: inputs of all groups joined, cut up, and put together again."""
    if not run.frozen_towers:
        return {}
    groups = list(groups)
    outputs = sum(_tower_outputs(run, group) for group in groups)
    return {
        "tower outputs": outputs,
        "copies for the towers": 2 * sum(_batch_bytes(run, group) for group in groups) + outputs,
        "work of the towers": max(tower_work(run, group.shape, _rows_at_once(run, group)) for group in groups),
    }


def _rows_at_once(run: Run, group: RowGroup) -> int:
    """Rows of a device whose images, or patches, its towers take at once."""
    shape = group.shape
    patches, images = shape.vision_rows * shape.patches, shape.images
    rows = [limit // size for limit, size in ((MOST_PATCHES, patches), (MOST_IMAGES, images)) if size]
    return max(1, min([group.rows // run.row_shards, max(rows, default=1)]))


def _gradients_stage(run: Run, groups: Iterable[RowGroup]) -> tuple[dict[str, int], dict[str, int]]:
    """When the loss is computed, and when a layer's gradients are: then nothing of the loss is left. What groups
    without micro-batches keep is there at both."""
    groups = list(groups)
    whole = [group for group in groups if group.micro_batches <= 1]
    split = [group for group in groups if group.micro_batches > 1]
    kept = sum(_kept(run, group) for group in whole) + _towers_kept(run, whole)
    part = max((sum(_kept(run, group) for group in together) for together in _together(split)), default=0)
    layer = max(layer_work(run, group.shape, _part_rows(run, group)) for group in groups)
    gradients = array_bytes(run.trainable.values())
    common = {
        "tower outputs": sum(_tower_outputs(run, group) for group in groups) if run.frozen_towers else 0,
        "copies for micro-batches": sum(_tower_outputs(run, group) for group in split) if run.frozen_towers else 0,
        "gradients": gradients * (2 if split else 1),
    }
    return (
        common | {"activations": kept, "loss": _loss(run, groups)},
        common
        | {
            "activations": kept + part + _towers_kept(run, split),
            "work of a layer": layer + gathered_layer(run),
        },
    )


def _kept(run: Run, group: RowGroup) -> int:
    return activations(run, group.shape, _part_rows(run, group))


def _together(groups: Sequence[RowGroup]) -> list[list[RowGroup]]:
    """Row groups whose micro-batches the language model takes in one run."""
    runs = run_together([group.shape.slots for group in groups], [group.micro_batches for group in groups])
    return [[groups[i] for i in members] for members in runs]


def _towers_kept(run: Run, groups: Iterable[RowGroup]) -> int:
    """Towers that train keep, for one group after another."""
    if run.frozen_towers:
        return 0
    return max((trained_towers(run, group.shape, _part_rows(run, group)) for group in groups), default=0)


def _update_stage(run: Run) -> dict[str, int]:
    return {"gradients": array_bytes(run.trainable.values()), "update": 3 * array_bytes(run.trainable.values())}


def _loss(run: Run, groups: Iterable[RowGroup]) -> int:
    """In float32: embeddings of all devices, their gradients and the sum of these; and local rows x all columns once,
    the rest of which compilers fuse."""
    slots = sum(group.rows * group.shape.examples for group in groups)
    local = slots // run.row_shards
    return 4 * slots * run.virtue.text.hidden_size * 3 + 4 * local * slots
