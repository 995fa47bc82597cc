"""One training step as three pure stages: frozen towers, loss and gradients, update.

Every stage is a function of arrays alone and runs on each part of the data axis by itself; what passes between the
parts is named in `parallel/collective.py`. The fsdp and tensor axes are left to the compiler.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from virtue_jax.batch import Batch
from virtue_jax.models.lora import hold_norms
from virtue_jax.models.parameters import bind
from virtue_jax.models.virtue import TowerOutputs, Virtue
from virtue_jax.parallel.collective import Axis, position, size, total
from virtue_jax.train.step.chunks import encode_in_chunks, run_together
from virtue_jax.train.step.loss import LossConfig, Slots, contrastive_loss

LOG_TEMPERATURE = "loss.log_temperature"  # path of the learnt temperature among the trainable parameters
LEAST_TEMPERATURE = 0.01  # as CLIP clips its logit scale (arXiv 2103.00020, section 2.5)
TOWER_INPUTS = ("patches", "patch_yx", "patch_segments", "sam_images", "prompt_masks")


class TrainState(NamedTuple):
    """step int32[]: steps done. trainable {path: array}. optimizer state over `trainable`. skipped int32[]: steps so
    far whose loss or gradient was not finite, and which changed nothing."""

    step: jax.Array
    trainable: dict[str, jax.Array]
    optimizer: optax.OptState
    skipped: jax.Array


@dataclass(frozen=True)
class StepConfig:
    """What the stages are made for. chunks: micro-batches of each row group. frozen_towers: whether the image towers
    run once, outside of differentiation. stop: whether a step that is not finite ends all further updates.
    hold_norms: whether DoRA's column norms are computed once per step (False: in every micro-batch; to measure)."""

    loss: LossConfig
    chunks: tuple[int, ...]
    seed: int
    frozen_towers: bool
    stop: bool = True
    hold_norms: bool = True


def without_pixels(batch: Batch) -> Batch:
    """The batch with only what `Virtue.embed` reads, so that images need not outlive the towers."""
    return batch._replace(**{name: None for name in TOWER_INPUTS})


def encode_groups(
    model: Virtue,
    groups: Sequence[Batch],
    towers: Sequence[TowerOutputs] | None,
    keys: Sequence,
    config: StepConfig,
    axis: Axis = None,
) -> Slots:
    """Embeds every row group, each in its number of micro-batches, and lines all slots up.

    towers: of `train/step/towers.py`; None = they train, are part of what is differentiated, and run again in the
    backward pass where there are micro-batches. keys: per group one dropout key per row, key[R], or None.
    """
    if config.hold_norms:
        hold_norms(model.text)
    embeddings = _embeddings(model, groups, towers, keys, config.chunks)
    slots, places = [], slot_places(groups, axis)
    for i, batch in enumerate(groups):
        facts = (batch.side, batch.content, batch.positives, batch.valid, places[i])
        slots.append(Slots(*(x.reshape(-1, *x.shape[2:]) for x in (embeddings[i], *facts))))
    return Slots(*(jnp.concatenate(parts) for parts in zip(*slots, strict=True)))


def _embeddings(model: Virtue, groups: Sequence[Batch], towers, keys: Sequence, chunks: Sequence[int]) -> list:
    """[R, K, hidden] of every row group; those of one length, cut into equally many micro-batches, run together."""

    def encode(items):
        if towers is None:
            items = [(batch, model.towers(batch), key) for batch, key in items]
        return model.embed_together(items)

    if towers is None:
        inputs = list(zip(groups, keys, strict=True))
    else:
        inputs = list(zip(map(without_pixels, groups), towers, keys, strict=True))
    embeddings: dict[int, jax.Array] = {}
    for members in run_together([batch.tokens.shape[1] for batch in groups], chunks):
        count = chunks[members[0]]
        embeddings |= zip(members, encode_in_chunks(encode, [inputs[i] for i in members], count), strict=True)
    return [embeddings[i] for i in range(len(groups))]


def dropout_keys(seed: int, step: jax.Array, groups: Sequence[Batch], axis: Axis) -> list[jax.Array]:
    """key[R] per row group: a function of (seed, step, group, row) alone, so that neither the mesh, nor micro-batches,
    nor a restart changes what is dropped."""
    key = jax.random.fold_in(jax.random.key(seed), step)

    def of(number: int, count: int):
        rows = position(axis) * count + jnp.arange(count)
        return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, number), rows)

    return [of(number, len(batch.tokens)) for number, batch in enumerate(groups)]


def slot_places(groups: Sequence[Batch], axis: Axis) -> list[jax.Array]:
    """int32[R, K] per row group: the slots' numbers in the whole batch, group after group, row after row."""
    places, before = [], 0
    parts = size(axis)
    for batch in groups:
        rows, examples = batch.pool.shape
        row = position(axis) * rows + jnp.arange(rows)
        places.append(before + row[:, None] * examples + jnp.arange(examples))
        before += parts * rows * examples
    return places


def loss_and_gradients(model: Virtue, config: StepConfig, axis: Axis) -> Callable:
    """gradients(trainable, step, frozen, groups, towers) -> ({path: gradient}, metrics), both of the whole batch."""

    def share(trainable, step, frozen, groups, towers):
        weights = {path: x for path, x in trainable.items() if path != LOG_TEMPERATURE}
        bound = bind(model, {**frozen, **weights})
        keys = dropout_keys(config.seed, step, groups, axis)
        slots = encode_groups(bound, groups, towers if config.frozen_towers else None, keys, config, axis)
        learnt = trainable.get(LOG_TEMPERATURE)
        temperature = config.loss.temperature if learnt is None else jnp.exp(learnt)
        value, metrics = contrastive_loss(slots, temperature, config.loss, axis)
        return value, metrics | {"temperature": jnp.asarray(temperature, jnp.float32)}

    def gradients(trainable, step, frozen, groups, towers):
        (_, metrics), local = jax.value_and_grad(share, has_aux=True)(trainable, step, frozen, groups, towers)
        return total(local, axis), metrics

    return gradients


def make_update(optimizer: optax.GradientTransformation, config: StepConfig) -> Callable:
    """update(state, gradients, loss) -> (state, metrics); what is not finite changes nothing but `skipped`."""

    def update(state: TrainState, gradients, loss):
        norm = optax.global_norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(gradients, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        if LOG_TEMPERATURE in trainable:
            trainable[LOG_TEMPERATURE] = jnp.maximum(trainable[LOG_TEMPERATURE], jnp.log(LEAST_TEMPERATURE))
        use = finite & (state.skipped == 0) if config.stop else finite
        kept = jax.tree.map(
            lambda new, old: jnp.where(use, new, old), (trainable, opt_state), (state.trainable, state.optimizer)
        )
        skipped = state.skipped + ~finite
        return TrainState(state.step + 1, *kept, skipped), {"gradient_norm": norm, "finite": finite}

    return update


def initial_state(trainable: dict[str, jax.Array], optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable), jnp.zeros((), jnp.int32))
