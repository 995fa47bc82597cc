"""setup(config, mesh): the abstract run (state, shardings, step) that training fills and a compiler can lower."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from virtue_jax.config import VirtueConfig
from virtue_jax.models.parameters import abstract_virtue, parameters, select
from virtue_jax.models.virtue import Virtue
from virtue_jax.ops.attention import check_backend
from virtue_jax.parallel.mesh import Mesh, replicated, rows
from virtue_jax.train.config import TrainConfig
from virtue_jax.train.optimizer import make_optimizer
from virtue_jax.train.step import TrainState, initial_state, make_step

_TOWERS = ("sam2.", "vision.")


@dataclass(frozen=True)
class TrainSetup:
    """A run without arrays.

    model: abstract. state: TrainState of ShapeDtypeStructs. frozen: {path: ShapeDtypeStruct}. step: the compiled-on-
    first-use step(state, frozen, groups) -> (state, metrics), state donated. init: jitted, trainable -> TrainState.
    """

    model: Virtue
    optimizer: optax.GradientTransformation
    state: TrainState
    frozen: dict[str, jax.ShapeDtypeStruct]
    step: Callable
    init: Callable
    mesh: Mesh


def setup(config: TrainConfig, virtue: VirtueConfig, mesh: Mesh) -> TrainSetup:
    """Raises:
    ValueError: a trainable pattern that matches nothing, an impossible schedule, an attention backend that cannot
        run on the mesh.
    """
    check_backend(config.numerics.attention, mesh.devices.flat[0].platform)
    model = abstract_virtue(virtue, config.numerics)
    shapes = parameters(model)
    chosen = select(sorted(shapes), config.trainable)
    # Trainable parameters are float32 whatever the frozen ones are: an update of 1e-5 vanishes in bfloat16.
    trainable = {path: jax.ShapeDtypeStruct(x.shape, jnp.float32) for path, x in shapes.items() if path in chosen}
    frozen = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in shapes.items() if path not in chosen}
    optimizer = make_optimizer(config.optimizer, config.steps)
    step = make_step(
        model,
        optimizer,
        temperature=config.temperature,
        chunks=(config.query_micro_batches, config.target_micro_batches),
        seed=config.seed,
        frozen_towers=not any(path.startswith(_TOWERS) for path in chosen),
    )
    whole, split = replicated(mesh), rows(mesh)
    init = jax.jit(lambda params: initial_state(params, optimizer), out_shardings=whole)
    return TrainSetup(
        model=model,
        optimizer=optimizer,
        state=jax.eval_shape(init, trainable),
        frozen=frozen,
        step=jax.jit(step, donate_argnums=0, in_shardings=(whole, whole, split), out_shardings=whole),
        init=init,
        mesh=mesh,
    )
