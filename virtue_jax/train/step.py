"""One training step as a pure function of (state, frozen parameters, row groups)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from virtue_jax.batch import Batch
from virtue_jax.models.parameters import bind
from virtue_jax.models.virtue import Virtue
from virtue_jax.train.chunks import encode_in_chunks
from virtue_jax.train.loss import Slots, contrastive_loss


class TrainState(NamedTuple):
    """step int32[]; trainable {path: array}; optimizer state over `trainable`."""

    step: jax.Array
    trainable: dict[str, jax.Array]
    optimizer: optax.OptState


_TOWER_INPUTS = ("patches", "patch_yx", "patch_segments", "sam_images", "prompt_masks")


def without_pixels(batch: Batch) -> Batch:
    """The batch with only what `Virtue.embed` reads, so that micro-batches do not carry images about."""
    return batch._replace(**{name: None for name in _TOWER_INPUTS})


def encode_groups(
    model: Virtue, groups: tuple[Batch, ...], chunks: tuple[int, ...], keys, frozen_towers: bool
) -> Slots:
    """Embeds every row group, each in its number of micro-batches, and lines all slots up.

    With `frozen_towers` the image towers run once per step, outside of differentiation; otherwise they are part of
    what is differentiated (and run again in the backward pass where there are micro-batches).
    """
    slots = []
    for batch, count, key in zip(groups, chunks, keys, strict=True):
        if frozen_towers:
            towers = jax.lax.stop_gradient(encode_in_chunks(lambda b, _: model.towers(b), batch, count))
            inputs = (without_pixels(batch), towers)
            z = encode_in_chunks(lambda item, k: model.embed(*item, k), inputs, count, key)
        else:
            z = encode_in_chunks(model, batch, count, key)
        slots.append(Slots(z.reshape(-1, z.shape[-1]), *(x.reshape(-1) for x in (batch.side, batch.pair, batch.valid))))
    return Slots(*(jnp.concatenate(parts) for parts in zip(*slots, strict=True)))


def make_step(
    model: Virtue,
    optimizer: optax.GradientTransformation,
    *,
    temperature: float,
    chunks: tuple[int, ...],
    seed: int,
    frozen_towers: bool,
) -> Callable:
    """step(state, frozen, groups) -> (state, metrics); `model` is abstract and gives only the structure.

    Dropout keys depend on (seed, step, row group, micro-batch) alone, so that a resumed run repeats them.
    """

    def loss_fn(trainable, frozen, groups, key):
        bound = bind(model, {**frozen, **trainable})
        keys = [jax.random.fold_in(key, i) for i in range(len(groups))]
        return contrastive_loss(encode_groups(bound, groups, chunks, keys, frozen_towers), temperature)

    def step(state: TrainState, frozen, groups: tuple[Batch, ...]):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, metrics), gradients = grad_fn(state.trainable, frozen, groups, key)
        updates, opt_state = optimizer.update(gradients, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {"loss": loss, "gradient_norm": optax.global_norm(gradients), **metrics}
        return TrainState(state.step + 1, trainable, opt_state), metrics

    return step


def initial_state(trainable: dict[str, jax.Array], optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))
