"""setup(config, mesh): the abstract run (state, batch, shardings, stages) that training fills and a compiler lowers."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from virtue_jax.batch import Batch
from virtue_jax.config import VirtueConfig
from virtue_jax.data.config import RowGroup
from virtue_jax.data.packing.layout import batch_layout
from virtue_jax.models.parameters import abstract_virtue, bind, parameters, select
from virtue_jax.models.virtue import Virtue, towers_are_frozen
from virtue_jax.ops.attention import resolve_backend
from virtue_jax.parallel.mesh import DATA, platform_of, replicated, row_shards, rows
from virtue_jax.parallel.shardings import parameter_shardings
from virtue_jax.train.step.config import TrainConfig
from virtue_jax.train.step.loss import LossConfig
from virtue_jax.train.step.optimizer import make_optimizer
from virtue_jax.train.step.stages import (
    LOG_TEMPERATURE,
    StepConfig,
    TrainState,
    initial_state,
    loss_and_gradients,
    make_update,
    without_pixels,
)
from virtue_jax.train.step.towers import encode_towers


@dataclass(frozen=True)
class TrainSetup:
    """A run without arrays: every abstract array is a ShapeDtypeStruct with its sharding.

    model: abstract. state: TrainState. frozen: {path: array}. groups: the row groups of a step. init(weights) -> state,
    weights = {path: array} of the model's trainable parameters. The stages of a step, each compiled on first use:
        towers(frozen, groups) -> outputs, () where the towers train
        gradients(trainable, step, frozen, groups, outputs) -> (gradients, metrics)
        update(state, gradients, loss) -> (state, metrics); state is given away
    """

    model: Virtue
    optimizer: optax.GradientTransformation
    state: TrainState
    frozen: dict[str, jax.ShapeDtypeStruct]
    groups: tuple[Batch, ...]
    towers: Callable
    gradients: Callable
    update: Callable
    init: Callable
    mesh: Mesh

    def step(
        self,
        state: TrainState,
        frozen: Mapping[str, jax.Array],
        groups: tuple[Batch, ...],
        *,
        stages=None,
        done: Callable | None = None,
    ):
        """All stages of a step: (state, metrics); `state` is given away.

        stages: what has `towers`, `gradients` and `update` to call (default: this). done: called with the name and the
        result of each stage.
        """
        stages, done = stages or self, done or (lambda name, result: None)
        outputs = stages.towers(frozen, groups)
        done("towers", outputs)
        outcome = stages.gradients(state.trainable, state.step, frozen, self.embed_inputs(groups), outputs)
        done("gradients", outcome)
        gradients, metrics = outcome
        state, more = stages.update(state, gradients, metrics["loss"])
        done("update", state)
        return state, metrics | more

    def embed_inputs(self, groups: tuple[Batch, ...]) -> tuple[Batch, ...]:
        """What `gradients` takes of the row groups: without images where the towers have run already."""
        return tuple(map(without_pixels, groups)) if towers_are_frozen(self.state.trainable) else groups


def setup(config: TrainConfig, virtue: VirtueConfig, mesh: Mesh) -> TrainSetup:
    """The abstract state and the jitted stages of a run's step on a mesh; nothing is computed or compiled.

    Raises:
        ValueError: a trainable pattern that matches nothing, an impossible schedule, an attention backend that cannot
            run on the mesh, rows or parameters that the mesh does not divide.
    """
    config = with_attention(config, platform_of(mesh))
    _check_rows(config.data.rows, mesh)
    if config.data.pixels == "uint8" and virtue.compat.sam_source != "raw":
        raise ValueError(
            "data.pixels 'uint8' needs a model whose compat.sam_source is 'raw': SAM's input of the released code is "
            "normalised twice, which grey levels do not go through; set data.pixels='float32'"
        )
    model = abstract_virtue(virtue, config.numerics)
    trainable, frozen = _split_parameters(config, parameters(model), mesh)
    optimizer = make_optimizer(config.optimizer, config.steps)
    step_config = StepConfig(
        loss=config.loss,
        chunks=tuple(max(1, group.micro_batches) for group in config.data.rows.values()),
        seed=config.seed,
        frozen_towers=towers_are_frozen(trainable),
        stop=config.nonfinite == "stop",
    )
    state = _abstract_state(trainable, optimizer, mesh)
    whole, split = replicated(mesh), rows(mesh)
    state_sharding = jax.tree.map(lambda x: x.sharding, state)
    towers, gradients = _mapped_stages(model, step_config, mesh)
    return TrainSetup(
        model=model,
        optimizer=optimizer,
        state=state,
        frozen=frozen,
        groups=tuple(abstract_groups(config, virtue, mesh)),
        towers=jax.jit(towers, out_shardings=split),
        gradients=jax.jit(gradients, out_shardings=(state_sharding.trainable, whole)),
        update=jax.jit(make_update(optimizer, step_config), donate_argnums=0, out_shardings=(state_sharding, whole)),
        init=jax.jit(partial(_start, config.loss, optimizer), out_shardings=state_sharding),
        mesh=mesh,
    )


def with_attention(config: TrainConfig, platform: str) -> TrainConfig:
    """The configuration with a platform's attention backend (`ops.attention.resolve_backend`) in place of "auto".

    Raises:
        ValueError: a backend that cannot run there.
    """
    backend = resolve_backend(config.numerics.attention, platform)
    return replace(config, numerics=replace(config.numerics, attention=backend))


def _start(loss: LossConfig, optimizer: optax.GradientTransformation, weights: dict[str, jax.Array]) -> TrainState:
    learnt = {LOG_TEMPERATURE: jnp.log(jnp.float32(loss.temperature))} if loss.learn_temperature else {}
    return initial_state({**weights, **learnt}, optimizer)


def _mapped_stages(model: Virtue, step_config: StepConfig, mesh: Mesh) -> tuple[Callable, Callable]:
    """The first two stages, mapped by hand over the data axis (and over axes of one device, which need no compiler)."""
    axis = DATA if mesh.shape[DATA] > 1 else None
    by_hand = {name for name, size in mesh.shape.items() if size == 1} | {DATA}
    shapes = parameters(model)
    part, whole = PartitionSpec(DATA), PartitionSpec()

    def towers(frozen, groups):
        # The language model is not run here: its parameters, trainable ones among them, stay shapes.
        return encode_towers(bind(model, {**shapes, **frozen}), groups) if step_config.frozen_towers else ()

    mapped = partial(jax.shard_map, mesh=mesh, axis_names=by_hand, check_vma=False)
    return (
        mapped(towers, in_specs=(whole, part), out_specs=part),
        mapped(
            loss_and_gradients(model, step_config, axis),
            in_specs=(whole, whole, whole, part, part),
            out_specs=(whole, whole),
        ),
    )


def _split_parameters(config: TrainConfig, shapes: Mapping, mesh: Mesh) -> tuple[dict, dict]:
    """(trainable, frozen) as ShapeDtypeStructs with shardings."""
    chosen = select(sorted(shapes), config.trainable)
    # Trainable parameters are float32 whatever the frozen ones are: an update of 1e-5 vanishes in bfloat16.
    shapes = {
        path: jax.ShapeDtypeStruct(x.shape, jnp.float32 if path in chosen else x.dtype) for path, x in shapes.items()
    }
    if config.loss.learn_temperature:
        chosen.add(LOG_TEMPERATURE)
        shapes[LOG_TEMPERATURE] = jax.ShapeDtypeStruct((), jnp.float32)
    shardings = parameter_shardings(shapes, mesh)
    placed = {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[path]) for path, x in shapes.items()}
    return {p: x for p, x in placed.items() if p in chosen}, {p: x for p, x in placed.items() if p not in chosen}


def _abstract_state(trainable: Mapping, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Moments lie where their parameters do; counts are everywhere."""
    shapes = jax.eval_shape(partial(initial_state, optimizer=optimizer), trainable)

    def placed(path, x):
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        sharding = trainable[names[-1]].sharding if names and names[-1] in trainable else replicated(mesh)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(placed, shapes)


def abstract_groups(config: TrainConfig, virtue: VirtueConfig, mesh: Mesh):
    """The row groups of one step, over all processes."""
    sharding = rows(mesh)
    for group in config.data.rows.values():
        layout = batch_layout(
            group.shape, sam_size=virtue.sam2.image_size, patch_dim=virtue.vision.patch_dim, pixels=config.data.pixels
        )
        yield Batch(
            **{
                name: jax.ShapeDtypeStruct((group.rows, *tail), dtype, sharding=sharding)
                for name, (dtype, tail) in layout.items()
            }
        )


def _check_rows(groups: Mapping[str, RowGroup], mesh: Mesh) -> None:
    shards = row_shards(mesh)
    wrong = [
        f"{name}: {group.rows} rows, {group.micro_batches} micro-batches"
        for name, group in groups.items()
        if group.rows % (shards * max(1, group.micro_batches))
    ]
    if wrong or not groups:
        least = math.lcm(*(shards * max(1, group.micro_batches) for group in groups.values())) if groups else shards
        raise ValueError(
            f"data.rows ({'; '.join(wrong) or 'none'}): every row group's rows must divide by {shards} (data x fsdp "
            f"devices) times its micro-batches, e.g. {least}; a run that is resumed keeps its rows: use a mesh whose "
            "data x fsdp divides them"
        )
