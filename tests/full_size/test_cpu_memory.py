"""What the embedder's program needs beside the weights and the activations."""

import dataclasses

import jax.numpy as jnp
import pytest

from virtue_jax.config import Numerics
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.embedding.embedder import Embedder
from virtue_jax.model_directory import load_config
from virtue_jax.models.parameters import abstract_virtue, bind, parameters
from virtue_jax.ops.attention import CPU


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_embedder_never_copies_the_weights_of_more_than_a_few_layers(tiny_model_dir, monkeypatch, dtype):
    folder, layers = tiny_model_dir(), 24
    config = load_config(folder)
    text = dataclasses.replace(config.text, num_hidden_layers=layers, hidden_size=256, intermediate_size=1024)
    text = dataclasses.replace(text, num_attention_heads=16, num_key_value_heads=8)
    vision = dataclasses.replace(config.vision, hidden_size=256)
    config = dataclasses.replace(config, text=text, vision=vision)
    model = abstract_virtue(config, Numerics(dtype, dtype, CPU))
    weights = {path: jnp.zeros(x.shape, x.dtype) for path, x in parameters(model).items()}
    embedder = Embedder(config, bind(model, weights), Tokenizer.load(folder))
    temporaries = []
    run = embedder._programs._read

    def measure(*inputs):
        program = run.lower(*inputs).compile()
        temporaries.append(program.memory_analysis().temp_size_in_bytes)
        return program(*inputs)

    monkeypatch.setattr(embedder._programs, "_read", measure)
    embedder.embed([{"text": "a red star"}])
    one_layer = 4 * sum(x.size for path, x in weights.items() if path.startswith("text.layers.")) / layers
    assert len(temporaries) == 1
    assert temporaries[0] < 6 * one_layer  # the activations of a whole text row among them
