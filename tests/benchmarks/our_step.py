"""Our training step on the benchmark's batch, whole or with one of its savings left out.

    PYTHONPATH=.:tests python -m benchmarks.our_step --case DIR [--variant NAME] [--gradients FILE.npz]

Steps are run on demand, see `worker.py`.
"""

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from benchmarks.case import CLIP_NORM, LEARNING_RATE, MODEL, TEMPERATURE, encode, read_pairs
from benchmarks.worker import serve

from converters import adapter, connector
from converters.rules import expand
from virtue_jax.batch import Batch
from virtue_jax.config import Numerics, VirtueConfig
from virtue_jax.data.config import DataConfig, RowGroup
from virtue_jax.data.encoding.encode import EncodedExample, Label
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.identity import content_id
from virtue_jax.data.packing.first_fit import first_fit, vision_places
from virtue_jax.data.packing.need import need_of, row_shape
from virtue_jax.data.packing.pack import Row, pack_rows
from virtue_jax.model_directory import load_model
from virtue_jax.models.parameters import parameters
from virtue_jax.parallel.mesh import MeshConfig, make_mesh, put_rows
from virtue_jax.train.cost.flops import executed_flops, useful_flops
from virtue_jax.train.cost.work import batch_work
from virtue_jax.train.step.config import ModelConfig, TrainConfig
from virtue_jax.train.step.loss import LossConfig
from virtue_jax.train.step.optimizer import OptimizerConfig
from virtue_jax.train.step.setup import TrainSetup, setup
from virtue_jax.train.step.stages import StepConfig, loss_and_gradients

SLOTS = 32  # rows are a multiple of this long


@dataclass(frozen=True)
class Variant:
    """What of our step is left as it is. pack: rows hold several examples. share: queries on one image share a row and
    so the towers' runs. towers_once: frozen towers outside of GradCache's two passes. hold_norms: DoRA's column norms
    once per step. parts: micro-batches of the queries."""

    pack: bool = True
    share: bool = True
    towers_once: bool = True
    hold_norms: bool = True
    parts: int = 4


VARIANTS = {
    "ours": Variant(),
    "without micro-batches": Variant(parts=1),
    "towers in both passes": Variant(towers_once=False),
    "norms in every micro-batch": Variant(hold_norms=False),
    "images not shared": Variant(share=False),
    "images not shared, one example per row": Variant(share=False, pack=False),
    "none of the four": Variant(pack=False, share=False, towers_once=False, hold_norms=False),
}


@dataclass(frozen=True)
class Rows:
    """One row group before packing."""

    rows: list[Row]
    slots: int
    micro_batches: int


def packed(queries: list[Row], targets: list[Row], parts: int) -> list[Rows]:
    """The queries on one image in a row, targets in what is left of the rows; as short as first-fit makes them."""
    elements = [
        [need_of(row), *(need_of([example]) for example in own)] for row, own in zip(queries, targets, strict=True)
    ]
    shape = row_shape(queries, slots=SLOTS)
    shape = replace(shape, examples=sum(map(len, queries + targets)))
    while True:
        fit = first_fit(elements, [(shape, len(queries))])
        if None not in fit.places:
            break
        shape = replace(shape, slots=shape.slots + SLOTS)
    rows: list[list[EncodedExample]] = [[] for _ in queries]
    for places, row, own in zip(fit.places, queries, targets, strict=True):
        for place, item in zip(places, [row, *([example] for example in own)], strict=True):
            rows[place.row] += item
    return [Rows(rows, shape.slots, parts)]


def unpacked(queries: list[Row], targets: list[Row], parts: int) -> list[Rows]:
    """One example per row, a row group per side, each as long as its longest example."""
    groups = []
    for side in (queries, targets):
        rows = [[example] for row in side for example in row]
        longest = max(len(row[0]) for row in rows)
        groups.append(Rows(rows, longest, parts))
    return groups


def make_groups(
    config: VirtueConfig, tokenizer: Tokenizer, folder: Path, variant: Variant
) -> tuple[tuple[Batch, ...], dict[str, RowGroup]]:
    """The batch's row groups, and what a run's configuration would say of them."""
    pairs = read_pairs(folder)
    encoded = encode(config, tokenizer, pairs)
    contents = [content_id(pair.positive) for pair in pairs]
    queries, targets = encoded["queries"], encoded["targets"]
    together = {}
    for i, query in enumerate(queries):
        together.setdefault(query.images[0].key, []).append(i)
    if not variant.share:
        queries = [replace(q, images=(replace(q.images[0], key=f"{i}"),)) for i, q in enumerate(queries)]
    queries = [replace(q, label=Label.query(content)) for q, content in zip(queries, contents, strict=True)]
    targets = [replace(t, label=Label.target(content)) for t, content in zip(targets, contents, strict=True)]
    by_image = [[side[i] for i in numbers] for side in (queries, targets) for numbers in together.values()]
    half = len(by_image) // 2
    arrange = packed if variant.pack else unpacked
    groups, described = [], {}
    for number, group in enumerate(arrange(by_image[:half], by_image[half:], variant.parts)):
        shape = replace(row_shape(group.rows), slots=group.slots)
        places = vision_places(map(need_of, group.rows), shape)
        groups.append(pack_rows(group.rows, shape, config, vision=places))
        described[f"group_{number}"] = RowGroup(shape, len(group.rows), group.micro_batches)
    return tuple(groups), described


class Training:
    """One batch, over and over."""

    def __init__(self, folder: Path, variant: Variant):
        config, model = load_model(folder / MODEL, Numerics())
        groups, described = make_groups(config, Tokenizer.load(folder / MODEL), folder, variant)
        run_config = TrainConfig(
            model=ModelConfig(directory=str(folder / MODEL)),
            data=DataConfig({}, rows=described),
            steps=10**6,
            batch_size=len(read_pairs(folder)),
            optimizer=OptimizerConfig(
                learning_rate=LEARNING_RATE, warmup_steps=0, decay="constant", clip_norm=CLIP_NORM
            ),
            loss=LossConfig(temperature=TEMPERATURE),
        )
        self.run = setup(run_config, config, make_mesh(MeshConfig(), jax.devices()[:1]))
        self.config, params = config, parameters(model)
        # Copies: the step gives its own away.
        trainable = {path: jax.numpy.array(params[path]) for path in self.run.state.trainable}
        self.frozen = {path: params[path] for path in self.run.frozen}
        self.state = self.run.init(trainable)
        self.groups = put_rows(groups, self.run.mesh)
        self.stage = towers_and_gradients(self.run, run_config, variant)
        self.facts = facts(config, groups, described, self.run, variant)

    def gradients(self):
        state = self.state
        return self.stage(state.trainable, state.step, self.frozen, self.groups)

    def step(self) -> float:
        gradients, metrics = self.gradients()
        self.state, more = self.run.update(self.state, gradients, metrics["loss"])
        jax.block_until_ready(self.state)
        if not more["finite"]:
            raise FloatingPointError("the loss or its gradient is not finite")
        return float(metrics["loss"])

    def named_gradients(self) -> dict[str, np.ndarray]:
        """{published name: gradient}, and the loss."""
        gradients, metrics = self.gradients()
        rules = [*adapter.rules(self.config.adapter, self.config.text.num_hidden_layers), *connector.RULES]
        named = [pair for entry in expand(rules) for pair in entry.unpack(np.asarray(gradients[entry.target]))]
        return dict(named) | {"loss": np.asarray(metrics["loss"])}


def towers_and_gradients(run: TrainSetup, config: TrainConfig, variant: Variant) -> Callable:
    """stage(trainable, step, frozen, groups) -> (gradients, metrics): the run's own stages, or for what a run cannot be
    configured to leave out, the same functions compiled otherwise."""
    made = StepConfig(
        loss=config.loss,
        chunks=tuple(group.micro_batches for group in config.data.rows.values()),
        seed=config.seed,
        frozen_towers=variant.towers_once,
        hold_norms=variant.hold_norms,
    )
    if not variant.towers_once:
        return jax.jit(functools.partial(loss_and_gradients(run.model, made, None), towers=()))
    gradients = run.gradients if variant.hold_norms else jax.jit(loss_and_gradients(run.model, made, None))

    def stage(trainable, step, frozen, groups):
        return gradients(trainable, step, frozen, run.embed_inputs(groups), run.towers(frozen, groups))

    return stage


def facts(config, groups, described, run: TrainSetup, variant: Variant) -> dict:
    """Row efficiency and FLOPs of the batch."""
    work, trainable = batch_work(groups), set(run.state.trainable)
    executed = executed_flops(config, described.values(), Numerics(), trainable)
    slots = sum(group.rows * group.shape.slots for group in described.values())
    patches = sum(group.rows * group.shape.vision_rows * group.shape.patches for group in described.values())
    return {
        "row_efficiency": work.tokens / slots,
        "patch_efficiency": work.patches / patches,
        "useful_gflop": useful_flops(config, work, trainable).total / 1e9,
        "executed_gflop": (executed.total + (0 if variant.towers_once else executed.towers)) / 1e9,
        "rows": {name: f"{group.rows} x {group.shape.slots}" for name, group in described.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", type=Path, required=True)
    parser.add_argument("--variant", choices=VARIANTS, default="ours")
    parser.add_argument("--gradients", type=Path)
    arguments = parser.parse_args()
    training = Training(arguments.case, VARIANTS[arguments.variant])
    if arguments.gradients:
        np.savez(arguments.gradients, **training.named_gradients())
    serve(training.step, training.facts)


if __name__ == "__main__":
    main()
