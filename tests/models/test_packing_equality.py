"""An example's embedding, and its share of a gradient, is the same alone, among others in its row, and in any row."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from virtue_jax.config import Compat, Numerics
from virtue_jax.data.encoding.encode import ExampleEncoder
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.example import Example, VisualPrompt
from virtue_jax.data.packing.first_fit import vision_places
from virtue_jax.data.packing.need import need_of, row_shape
from virtue_jax.data.packing.pack import pack_rows
from virtue_jax.model_directory import load_config, load_model
from virtue_jax.models.parameters import bind, parameters

pytestmark = pytest.mark.slow

# Which example stands in which row, at which place.
ARRANGEMENTS = {
    "one to a row": [[0], [1], [2], [3], [4], [5]],
    "two on one image, the rest mixed": [[0, 1, 4], [2, 5], [3]],
    "other neighbours": [[5, 3, 0], [4, 1, 2]],
}


@pytest.fixture(scope="module")
def virtue(tiny_model_dir):
    folder = tiny_model_dir(adapter=True)
    small = replace(load_config(folder).sam2, image_size=128)
    config, model = load_model(folder, Numerics(), compat=Compat.paper(), sam2=small)
    return config, model, Tokenizer.load(folder)


@pytest.fixture(scope="module")
def encoded(virtue, png):
    config, _, tokenizer = virtue
    rng = np.random.default_rng(0)
    street, room = (png(rng.integers(0, 256, shape, np.uint8)) for shape in ((60, 90, 3), (112, 56, 3)))
    mask = np.zeros((112, 56), bool)
    mask[20:60, 10:40] = True
    examples = [
        Example("What is this?", (street,), VisualPrompt(box=(5, 5, 40, 30))),
        Example("And this, further right?", (street,), VisualPrompt(points=((70, 30, 1), (5, 5, 0)))),
        Example("Which object?", (room,), VisualPrompt(mask=mask)),
        Example("Describe both.", (room, street)),
        Example("a caption of some words"),
        Example("another"),
    ]
    encoder = ExampleEncoder(config, tokenizer)
    return [encoder.encode(example) for example in examples]


def embed(virtue, encoded, arrangement):
    """float32[examples, hidden], in the order of `encoded`; and the gradient of a random projection of all of them."""
    config, model, _ = virtue
    rows = [[encoded[i] for i in row] for row in arrangement]
    shape = row_shape(rows, slots=16, patches=16)
    batch = pack_rows(rows, shape, config, vision=vision_places(map(need_of, rows), shape))
    weights = np.random.default_rng(1).standard_normal((len(encoded), config.text.hidden_size)).astype(np.float32)
    projection = np.zeros((len(rows), shape.examples, config.text.hidden_size), np.float32)
    for r, row in enumerate(arrangement):
        projection[r, : len(row)] = weights[row]
    params = parameters(model)
    trained = {path: x for path, x in params.items() if "lora" in path or path.startswith("connector")}

    @jax.jit
    def run(trained):
        z = bind(model, {**params, **trained})(batch)
        return (z * projection).sum(), z

    (_, z), gradients = jax.value_and_grad(run, has_aux=True)(trained)
    out = np.zeros_like(weights)
    for r, row in enumerate(arrangement):
        out[row] = np.asarray(z)[r, : len(row)]
    return out, gradients, shape


@pytest.fixture(scope="module")
def alone(virtue, encoded):
    return embed(virtue, encoded, ARRANGEMENTS["one to a row"])


@pytest.mark.parametrize("name", [name for name in ARRANGEMENTS if name != "one to a row"])
def test_embeddings_and_gradients_do_not_depend_on_the_row(virtue, encoded, alone, name):
    z, gradients, shape = embed(virtue, encoded, ARRANGEMENTS[name])
    assert shape.examples > 1 and shape.vision_rows > 1
    np.testing.assert_allclose(z, alone[0], atol=1e-5)
    for path, gradient in alone[1].items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(gradients[path], gradient, atol=2e-5 * scale + 1e-7, err_msg=path)


def test_the_examples_differ(alone):
    similarity = alone[0] @ alone[0].T
    assert (similarity[~np.eye(len(similarity), dtype=bool)] < 0.9999).all()
