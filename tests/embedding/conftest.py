"""A tiny embedder of small pictures, and inputs of every kind."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from virtue_jax.config import Compat, Numerics
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.example import Example, VisualPrompt
from virtue_jax.embedding import programs
from virtue_jax.embedding.embedder import Embedder
from virtue_jax.model_directory import load_config, load_model
from virtue_jax.ops.attention import CPU

MOST_TOKENS = 64  # vision tokens of the largest picture


@pytest.fixture(scope="session")
def small_embedder(tiny_model_dir):
    """`small_embedder(compat, **options)`: the golden tiny model with a SAM input of 128 pixels and small pictures."""
    embedders = {}

    def load(compat: str = "paper", **options) -> Embedder:
        key = (compat, *sorted(options.items()))
        if key not in embedders:
            folder = tiny_model_dir()
            sam2 = replace(load_config(folder).sam2, image_size=128)
            config, model = load_model(
                folder,
                Numerics(attention=CPU),
                compat=Compat.preset(compat),
                sam2=sam2,
                max_pixels=MOST_TOKENS * 28 * 28,
            )
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(programs, "LENGTHS", 2)  # fewer loops to compile
                embedders[key] = Embedder(config, model, Tokenizer.load(folder), **options)
        return embedders[key]

    return load


@pytest.fixture(scope="session")
def picture(png):
    """`picture(height, width)`: PNG bytes of noise, the same for the same size."""
    return lambda height, width: png(
        np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), np.uint8)
    )


@pytest.fixture(scope="session")
def mixed(picture) -> list[Example]:
    """Pictures of ten sizes with and without prompts of every kind, texts between them, an image twice."""
    mask = np.zeros((90, 70), bool)
    mask[10:50, 20:60] = True
    prompts = [
        (picture(60, 100), VisualPrompt(box=(5, 6, 70, 50))),
        (picture(60, 100), VisualPrompt(points=((70, 30, 1),))),
        (picture(40, 200), VisualPrompt(points=((70, 30, 1), (5, 5, 0)))),
        (picture(90, 70), VisualPrompt(mask=mask)),
        (picture(90, 70), VisualPrompt(box=(1, 2, 60, 80), points=((9, 9, 1),), mask=mask)),
        (picture(300, 150), VisualPrompt(box=(5, 6, 70, 50), frame="sam")),
        *((picture(30 + 40 * i, 250 - 20 * i), None) for i in range(6)),
    ]
    examples = [Example(f"which one is this? {i}", (image,), prompt) for i, (image, prompt) in enumerate(prompts)]
    texts = [Example(f"a caption of {'many ' * i}words") for i in range(5)]
    several = Example("Describe both.", (picture(60, 100), picture(90, 70)))
    return [texts[0], *examples[:5], *texts[1:3], several, *examples[5:], *texts[3:], Example("", (picture(50, 50),))]


@pytest.fixture
def compiled():
    """Names of the programs compiled from now on."""
    names = []

    def listen(event: str, _seconds: float, **facts) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(facts.get("fun_name", "?")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)
