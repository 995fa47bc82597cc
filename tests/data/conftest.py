"""The tiny golden model's config and tokenizer, and an image, for the tests of the data pipeline."""

import dataclasses
from pathlib import Path

import golden_files
import numpy as np
import pytest

from virtue_jax.config import HieraConfig, Sam2Config, TextConfig, VirtueConfig, VisionConfig
from virtue_jax.data.encoding.encode import EncodedExample, ExampleEncoder, Label
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.example import Example, VisualPrompt
from virtue_jax.data.packing.first_fit import vision_places
from virtue_jax.data.packing.need import need_of, row_shape
from virtue_jax.data.packing.pack import pack_rows


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


@pytest.fixture(scope="session")
def small_sam_encoder(tiny_config, tokenizer) -> ExampleEncoder:
    """With a SAM input of 256 pixels: 16 segmentation tokens."""
    sam2 = dataclasses.replace(tiny_config.sam2, image_size=256)
    return ExampleEncoder(dataclasses.replace(tiny_config, sam2=sam2), tokenizer)


@pytest.fixture(scope="session")
def rows(small_sam_encoder, noise, png):
    """Row 0: two prompts on one image, one of them with a second image first seen there, and a text. Row 1: a mask."""
    first, second = png(noise), png(noise[:40, :50])
    box = VisualPrompt(box=(5, 5, 50, 40))
    points = VisualPrompt(points=((3, 3, 1), (9, 9, 0)))
    mask = np.zeros((60, 90), bool)
    mask[10:30, 20:50] = True

    def encode(label: Label, *example, origin: str) -> EncodedExample:
        return dataclasses.replace(small_sam_encoder.encode(Example(*example, origin=origin)), label=label)

    return [
        [
            encode(Label.query(5, 9), "Red cat", (first,), box, origin="row 0a"),
            encode(Label.target(5), "A tiger", origin="row 0b"),
            encode(Label.query(7), "both", (second, first), points, origin="row 0c"),
        ],
        [encode(Label.target(9), "mask", (first,), VisualPrompt(mask=mask), origin="row 1")],
    ]


@pytest.fixture
def packed(rows, small_sam_encoder):
    """With one vision row, in which row 0 has two images, and two places for positives."""
    shape = row_shape(rows, slots=64, patches=64)
    shape = dataclasses.replace(shape, vision_rows=1, patches=2 * shape.patches)
    return shape, pack_rows(rows, shape, small_sam_encoder.config, vision=vision_places(map(need_of, rows), shape))
