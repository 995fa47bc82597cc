"""The training step of both behaviours against the original PyTorch implementation: embeddings, loss, gradients, AdamW.

The queries of `train` were left-padded in one batch, and the released code counts positions over the padding: they are
given to the packed rows as the golden attention mask has them. `paper_train` goes through as people's own data would.
"""

import functools
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
import pytest
from golden_files import arrays, facts

from converters import adapter, connector
from converters.rules import Entry, expand
from virtue_jax.batch import QUERY, TARGET, RowShape
from virtue_jax.config import Compat, Numerics, VirtueConfig
from virtue_jax.data.config import DataConfig, RowGroup, SourceConfig
from virtue_jax.data.encoding.encode import EncodedExample, ExampleEncoder, Label
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.example import Example, VisualPrompt
from virtue_jax.data.packing.first_fit import vision_places
from virtue_jax.data.packing.need import need_of, row_shape
from virtue_jax.data.packing.pack import pack_rows
from virtue_jax.model_directory import load_model
from virtue_jax.models.parameters import bind, parameters
from virtue_jax.parallel.mesh import make_mesh, put_rows
from virtue_jax.train.step.config import ModelConfig, TrainConfig
from virtue_jax.train.step.loss import LossConfig, contrastive_loss
from virtue_jax.train.step.optimizer import OptimizerConfig
from virtue_jax.train.step.setup import setup
from virtue_jax.train.step.stages import StepConfig, encode_groups
from virtue_jax.train.step.towers import encode_towers

pytestmark = [pytest.mark.parity, pytest.mark.slow]

STEPS = 5
TEMPERATURE = 0.02
LOSS = LossConfig(TEMPERATURE)
STEP_TOLERANCE, TRAJECTORY_TOLERANCE = 1e-4, 1e-3


class GoldenStep(NamedTuple):
    """name: of the golden file. groups: the queries' and the targets' rows, of these shapes."""

    name: str
    config: VirtueConfig
    params: dict
    groups: tuple
    shapes: tuple[RowShape, ...]


@pytest.fixture(scope="module", params=["train", "paper_train"])
def golden_step(request, tiny_model_dir, png) -> GoldenStep:
    folder, name = tiny_model_dir(adapter=True), request.param
    compat = Compat.paper() if name.startswith("paper") else Compat.released()
    config, model = load_model(folder, Numerics(), compat=compat)
    config = replace(config, adapter=replace(config.adapter, dropout=0.0))
    encoder = ExampleEncoder(config, Tokenizer.load(folder))
    queries = [encoder.encode(query(name, i, png)) for i in range(4)]
    targets = [encoder.encode(Example(text)) for text in facts(name)["target_texts"]]
    for sign, encoded in (("q", queries), ("t", targets)):
        for i, example in enumerate(encoded):
            encoded[i] = checked(name, sign, i, example)
    shapes = tuple(row_shape([[e] for e in encoded], slots=16, patches=16) for encoded in (queries, targets))
    packed = zip((QUERY, TARGET), (queries, targets), shapes, strict=True)
    return GoldenStep(name, config, parameters(model), tuple(pack(config, *each) for each in packed), shapes)


def query(name: str, i: int, png) -> Example:
    given, text = arrays(name), facts(name)["query_texts"][i]
    if name == "train":
        prompt = VisualPrompt(box=tuple(given["bboxes"][i].tolist()), frame="sam")
    elif f"box_{i}" in given:
        prompt = VisualPrompt(box=tuple(given[f"box_{i}"].tolist()))
    elif f"points_{i}" in given:
        labelled = zip(given[f"points_{i}"].tolist(), given[f"point_labels_{i}"].tolist(), strict=True)
        prompt = VisualPrompt(points=tuple((*point, label) for point, label in labelled))
    else:
        prompt = VisualPrompt(mask=given[f"mask_{i}"] != 0) if f"mask_{i}" in given else None
    return Example(text, (png(given[f"raw_{i}"]),), prompt)


def checked(name: str, sign: str, i: int, example: EncodedExample) -> EncodedExample:
    """The example with the golden positions, after its own tokens (and, in `paper_train`, positions) agreed."""
    given = arrays(name)
    count = int((example.segmentation >= 0).sum())
    words = example.vision[count:] < 0
    if name == "paper_train":
        ids = given[f"{sign}_input_ids_{i}"][0]
        if sign == "q":
            np.testing.assert_array_equal(example.positions, given[f"q_position_ids_{i}"][:, 0])
    else:
        mask = given[f"{sign}_attention_mask"][i]
        ids = given[f"{sign}_input_ids"][i][mask == 1]
        positions = np.concatenate([np.zeros(count, np.int64), count + np.flatnonzero(mask)])
        example = replace(example, positions=np.tile(positions.astype(np.int32), (3, 1)))
    np.testing.assert_array_equal(example.tokens[count:][words], ids[words])
    return example


def pack(config: VirtueConfig, side: int, encoded: list[EncodedExample], shape: RowShape):
    label = Label.query if side == QUERY else Label.target
    rows = [[replace(example, label=label(i))] for i, example in enumerate(encoded)]
    return pack_rows(rows, shape, config, vision=vision_places(map(need_of, rows), shape))


@functools.cache
def weight_table(config: VirtueConfig) -> list[Entry]:
    """The converters' own table of what trains: published names on one side, parameter paths on the other."""
    return expand([*adapter.rules(config.adapter, config.text.num_hidden_layers), *connector.RULES])


def published(config: VirtueConfig, params: dict) -> dict[str, np.ndarray]:
    """{published name: tensor} of parameters, or of their gradients."""
    named = [pair for entry in weight_table(config) for pair in entry.unpack(np.asarray(params[entry.target]))]
    assert len(dict(named)) == len(named)
    return dict(named)


def run_of(step: GoldenStep, chunks: int):
    config = TrainConfig(
        model=ModelConfig(directory="golden"),
        data=DataConfig(
            {"golden": SourceConfig("golden")},
            {name: RowGroup(shape, 4, chunks) for name, shape in zip("qt", step.shapes, strict=True)},
        ),
        steps=STEPS,
        batch_size=4,
        optimizer=OptimizerConfig(
            learning_rate=1e-4, warmup_steps=0, decay="constant", weight_decay=0.0, clip_norm=1.0
        ),
        loss=LOSS,
    )
    run = setup(config, step.config, make_mesh(config.mesh))
    # Copies: the step gives its own away.
    trainable = {path: jax.numpy.array(step.params[path]) for path in run.state.trainable}
    frozen = {path: step.params[path] for path in run.frozen}
    return run, trainable, frozen


def relative(got, expected) -> float:
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("chunks", [1, 2])
def test_embeddings_loss_and_every_gradient(golden_step, chunks):
    run, trainable, frozen = run_of(golden_step, chunks)

    def loss(trainable, frozen, groups):
        model = bind(run.model, {**frozen, **trainable})
        made = StepConfig(LOSS, (chunks, chunks), seed=0, frozen_towers=True)
        slots = encode_groups(model, groups, encode_towers(model, groups), (None, None), made)
        value, metrics = contrastive_loss(slots, TEMPERATURE, LOSS)
        return value, (slots.embeddings, metrics)

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (z, metrics)), got = gradient(trainable, frozen, golden_step.groups)
    expected = arrays(golden_step.name)
    z = np.asarray(z)
    errors = {"loss": relative(value, expected["loss"])}
    errors["q_reps"], errors["t_reps"] = relative(z[:4], expected["q_reps"]), relative(z[4:], expected["t_reps"])
    errors["logits"] = relative(z[:4] @ z[4:].T / TEMPERATURE, expected["logits"])
    gradients = {name.removeprefix("grad/"): x for name, x in expected.items() if name.startswith("grad/")}
    mine = published(golden_step.config, got)
    assert mine.keys() == gradients.keys()
    assert len(gradients) == 51
    errors |= {name: relative(mine[name], gradients[name]) for name in gradients}
    assert max(errors.values()) < STEP_TOLERANCE, {k: e for k, e in errors.items() if e >= STEP_TOLERANCE}
    assert int(metrics["queries"]) == 4


def test_golden_gradients_go_through_the_weight_table_unchanged(golden_step):
    expected = arrays(golden_step.name)
    packed = {e.target: e.pack([expected[f"grad/{n}"] for n in e.sources]) for e in weight_table(golden_step.config)}
    assert {path: x.shape for path, x in packed.items()} == {path: golden_step.params[path].shape for path in packed}
    assert set(packed) == set(run_of(golden_step, 1)[1])
    for name, tensor in published(golden_step.config, packed).items():
        np.testing.assert_array_equal(tensor, expected[f"grad/{name}"], err_msg=name)


def test_five_steps_of_adamw(golden_step):
    run, trainable, frozen = run_of(golden_step, 1)
    start = published(golden_step.config, trainable)
    state, groups = run.init(trainable), put_rows(golden_step.groups, run.mesh)
    losses, norms = [], []
    for _ in range(STEPS):
        state, metrics = run.step(state, frozen, groups)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["gradient_norm"]))
    expected = arrays(golden_step.name)
    np.testing.assert_allclose(losses, expected["traj_loss"], rtol=TRAJECTORY_TOLERANCE)
    np.testing.assert_allclose(norms, expected["traj_grad_norm"], rtol=TRAJECTORY_TOLERANCE)
    after = {name.removeprefix("after5/"): x for name, x in expected.items() if name.startswith("after5/")}
    mine = published(golden_step.config, state.trainable)
    assert after
    for name, tensor in after.items():
        moved = relative(mine[name] - start[name], tensor - start[name])
        assert moved < TRAJECTORY_TOLERANCE, (name, moved)
