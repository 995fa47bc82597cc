"""Training as published: adapter and connector learn, the towers of a converted checkpoint stay as they are."""

import json
import re

import numpy as np
import pytest
from golden_files import arrays
from PIL import Image

from virtue_jax.batch import RowShape
from virtue_jax.config import AdapterConfig, Numerics
from virtue_jax.data.config import DataConfig, RowGroup, SourceConfig
from virtue_jax.embedding.embedder import Embedder
from virtue_jax.model_directory import load_config, load_model
from virtue_jax.models.parameters import parameters
from virtue_jax.train.loop import train
from virtue_jax.train.step.config import ModelConfig, TrainConfig
from virtue_jax.train.step.optimizer import OptimizerConfig

pytestmark = pytest.mark.slow

STEPS = 3
ROWS = {
    "images": RowGroup(RowShape(slots=384, vision_rows=1, images=1, patches=128, prompts=1, points=4), rows=2),
    "text": RowGroup(RowShape(slots=32, examples=2), rows=1),
}
FRESH = AdapterConfig(rank=4, alpha=16.0, dropout=0.1, use_dora=False, targets=("q_proj", "v_proj", "up_proj"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Two pairs, so that a batch of two is the whole of an epoch."""
    folder = tmp_path_factory.mktemp("pairs")
    for name in "bd":
        Image.fromarray(arrays("images")[f"{name}/raw"]).save(folder / f"{name}.png")
    lines = [
        {"query": {"image": "b.png", "text": "What is it?", "box": [6, 13, 95, 202]}, "positive": {"text": "A tiger"}},
        {"query": {"image": "d.png", "text": "Find it.", "points": [[31, 4, 1]]}, "positive": {"text": "A red cat"}},
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "pairs.jsonl"


@pytest.mark.parametrize("fresh", [None, FRESH], ids=["its own DoRA", "a fresh LoRA and connector"])
def test_only_adapter_and_connector_learn(tiny_model_dir, pairs, tmp_path, fresh):
    start = tiny_model_dir(adapter=True) if fresh is None else tiny_model_dir(connector=None)
    config = TrainConfig(
        model=ModelConfig(directory=str(start), adapter=fresh),
        data=DataConfig(sources={"pairs": SourceConfig(str(pairs), kind="jsonl")}, rows=ROWS),
        steps=STEPS,
        batch_size=2,
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=0, decay="constant"),
        log_every=1,
    )
    model = train(config, tmp_path)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == STEPS
    assert all(
        0 < loss < 50 for loss in losses
    )  # three steps with dropout need not fall; test_training_golden.py shows that
    assert load_config(model).adapter == (fresh or load_config(start).adapter)
    before, after = (parameters(load_model(folder, Numerics())[1]) for folder in (start, model))
    learning = {path for path in after if any(re.fullmatch(pattern, path) for pattern in config.trainable)}
    assert {path.rsplit(".", 1)[-1] for path in learning} >= {"lora_a", "lora_b", "kernel", "bias"}
    assert set(after) - set(before) == (set() if fresh is None else {p for p in learning if ".lora_" in p})
    for path in before:
        assert (np.asarray(before[path]) == np.asarray(after[path])).all() == (path not in learning), path
    vector = Embedder.load(model).embed([{"text": "A tiger"}])
    np.testing.assert_allclose(np.linalg.norm(vector), 1, atol=1e-5)


def test_a_second_adapter_is_refused(tiny_model_dir, pairs, tmp_path):
    config = TrainConfig(
        model=ModelConfig(directory=str(tiny_model_dir(adapter=True)), adapter=FRESH),
        data=DataConfig(sources={"pairs": SourceConfig(str(pairs), kind="jsonl")}, rows=ROWS),
        steps=STEPS,
        batch_size=2,
    )
    with pytest.raises(ValueError, match=r"has an adapter already: .*leave model\.adapter out"):
        train(config, tmp_path)
