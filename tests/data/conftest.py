"""The tiny golden model's config and tokenizer, and an image, for the tests of the data pipeline."""

from pathlib import Path

import golden_files
import numpy as np
import pytest

from virtue_jax.config import HieraConfig, Sam2Config, TextConfig, VirtueConfig, VisionConfig
from virtue_jax.data.tokens import Tokenizer


@pytest.fixture(scope="session")
def arrays():
    """Loads one golden file by name: a dict of arrays, or the parsed JSON."""

    def load(name: str):
        file = Path(name)
        return golden_files.facts(file.stem) if file.suffix == ".json" else golden_files.arrays(file.stem)

    return load


@pytest.fixture(scope="session")
def tokenizer(golden: Path) -> Tokenizer:
    return Tokenizer.load(golden / "tiny" / "vlm")


@pytest.fixture(scope="session")
def tiny_config() -> VirtueConfig:
    """Geometry of the golden's tiny checkpoints (golden README, section 1)."""
    hiera = HieraConfig(embed_dim=8, num_heads=1, stages=(1, 2, 3, 2), global_att_blocks=(4,))
    text = TextConfig(
        vocab_size=1024,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        mrope_section=(2, 3, 3),
        image_token_id=1012,
        vision_start_token_id=1009,
        vision_end_token_id=1010,
    )
    vision = VisionConfig(depth=2, embed_dim=32, num_heads=2, hidden_size=64)
    return VirtueConfig(sam2=Sam2Config(hiera=hiera, d_model=32), vision=vision, text=text)


@pytest.fixture(scope="session")
def noise() -> np.ndarray:
    """uint8[60, 90, 3]"""
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
