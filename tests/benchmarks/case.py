"""The benchmark's model, data and inputs: tiny but not trivial, the towers' shares of the arithmetic as in 2B + b+.

    PYTHONPATH=.:tests python -m benchmarks.case --out DIR [--quick]

Writes scenes, a random model directory, the same weights in the authors' formats (converters), and every example's
inputs as plain arrays for the program that is not ours.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from virtue_jax.config import AdapterConfig, HieraConfig, Sam2Config, TextConfig, VirtueConfig, VisionConfig
from virtue_jax.data.encoding.encode import EncodedExample, ExampleEncoder
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.example import Example, TrainingPair
from virtue_jax.data.formats.scar import ScarTraining

TEMPERATURE = 0.02
LEARNING_RATE = 2e-5
CLIP_NORM = 1.0
SCENES, MODEL, EXPORTED, INPUTS, PAIRS = "scenes", "model", "exported", "inputs.npz", "pairs.json"


@dataclass(frozen=True)
class Size:
    """images: in the batch. queries: on each. width, height: of images, ranges of pixels."""

    virtue: VirtueConfig
    images: int
    queries: int
    width: tuple[int, int]
    height: tuple[int, int]

    @property
    def pairs(self) -> int:
        return self.images * self.queries


def size_of(quick: bool) -> Size:
    """32 pairs of 8 images with 4 queries each; or a quarter of that on a smaller model."""
    if quick:
        return Size(_virtue(layers=2, hidden=128, depth=2, dim=64, trunk=8, image_size=128), 4, 2, (90, 180), (90, 180))
    # Rows one and a half times as long as the model is wide, as 2,816 slots are for the 2B.
    return Size(_virtue(layers=6, hidden=384, depth=5, dim=320, trunk=18, image_size=256), 8, 4, (168, 280), (168, 252))


def _virtue(*, layers: int, hidden: int, depth: int, dim: int, trunk: int, image_size: int) -> VirtueConfig:
    text = TextConfig(
        vocab_size=2048,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        mrope_section=(8, 12, 12),
        image_token_id=-1,  # set from the tokenizer
        vision_start_token_id=-1,
        vision_end_token_id=-1,
    )
    hiera = HieraConfig(embed_dim=trunk, num_heads=1, stages=(1, 2, 5, 1), global_att_blocks=(5, 7))
    return VirtueConfig(
        sam2=Sam2Config(hiera, d_model=128, image_size=image_size, decoder_mlp_dim=512),
        vision=VisionConfig(depth=depth, embed_dim=dim, num_heads=dim // 32, hidden_size=hidden),
        text=text,
        adapter=AdapterConfig(rank=8, alpha=64.0, dropout=0.0),
    )


def prepare(folder: Path, quick: bool) -> None:
    """Everything that the programs read; `folder` must not exist."""
    from virtue_jax.data.encoding.fresh_tokenizer import train_tokenizer
    from virtue_jax.data.scenes import write_scenes

    size = size_of(quick)
    folder.mkdir(parents=True)
    spare = 3 * size.images  # captions must differ within the batch
    objects = (size.queries, size.queries)
    write_scenes(folder / SCENES, train=spare, eval=0, seed=0, width=size.width, height=size.height, objects=objects)
    source = ScarTraining(folder / SCENES)
    rows = distinct_rows(source, size)
    (folder / PAIRS).write_text(json.dumps(rows))
    pairs = read_pairs(folder)
    texts = [example.text for pair in pairs for example in (pair.query, pair.positive)]
    train_tokenizer(texts, size.virtue.text.vocab_size).save_pretrained(folder / "tokenizer")
    tokenizer = Tokenizer.load(folder / "tokenizer")
    config = _with_tokenizer(size.virtue, tokenizer)
    _write_model(folder, config, tokenizer)
    np.savez(folder / INPUTS, **plain_inputs(encode(config, tokenizer, pairs), config))


def distinct_rows(source: ScarTraining, size: Size) -> list[int]:
    """`size.queries` rows of each of the first images whose captions are not in the batch yet."""
    chosen, captions = [], set()
    for rows in source.rows_by_image().values():
        rows = rows[: size.queries]
        texts = {source.pair(row).positive.text for row in rows}
        if len(texts) == size.queries and not texts & captions and len(chosen) < size.pairs:
            chosen += rows
            captions |= texts
    if len(chosen) < size.pairs:
        raise SystemExit(f"{len(chosen)} of {size.pairs} pairs have captions of their own; make more scenes")
    return chosen


def read_pairs(folder: Path) -> list[TrainingPair]:
    """The batch's pairs; those of one image stand together."""
    source = ScarTraining(folder / SCENES)
    return [source.pair(row) for row in json.loads((folder / PAIRS).read_text())]


def encode(config: VirtueConfig, tokenizer: Tokenizer, pairs: list[TrainingPair]) -> dict[str, list[EncodedExample]]:
    """{"queries": ..., "targets": ...}, in the order of the pairs."""
    encoder, shared = ExampleEncoder(config, tokenizer), {}

    def side(examples: list[Example]) -> list[EncodedExample]:
        return [encoder.encode(example, shared=shared) for example in examples]

    return {"queries": side([pair.query for pair in pairs]), "targets": side([pair.positive for pair in pairs])}


def plain_inputs(encoded: dict[str, list[EncodedExample]], config: VirtueConfig) -> dict[str, np.ndarray]:
    """What a PyTorch program needs, as its own preprocessing gives it: ids with image tokens, pixel values of two
    frames, grids, SAM inputs channels first, box corners in SAM's frame, rotary positions; one set per example."""
    arrays = {"image_token": np.array(config.text.image_token_id), "pairs": np.array(len(encoded["queries"]))}
    for i, query in enumerate(encoded["queries"]):
        (image,), count = query.images, config.segmentation_tokens
        ids = np.where(query.vision >= 0, config.text.image_token_id, query.tokens)[count:]
        patches = np.empty(image.patches.shape, np.float32)
        image.write_patches(patches)
        frames = np.repeat(patches.reshape(len(patches), 3, 1, -1), 2, axis=2)  # of a still image: equal
        sam = np.empty((config.sam2.image_size, config.sam2.image_size, 3), np.float32)
        image.write_sam(sam)
        arrays |= {
            f"q{i}_ids": ids.astype(np.int64),
            f"q{i}_positions": query.positions.astype(np.int64),
            f"q{i}_pixel_values": frames.reshape(len(patches), -1),
            f"q{i}_grid": np.array([1, *image.grid], np.int64),
            f"q{i}_sam": np.ascontiguousarray(sam.transpose(2, 0, 1)),
            f"q{i}_box": query.prompt.points[:2].reshape(4),
        }
    for i, target in enumerate(encoded["targets"]):
        arrays[f"t{i}_ids"] = target.tokens.astype(np.int64)
        arrays[f"t{i}_positions"] = target.positions.astype(np.int64)
    return arrays


def _with_tokenizer(config: VirtueConfig, tokenizer: Tokenizer) -> VirtueConfig:
    ids = tokenizer.tokenizer.convert_tokens_to_ids
    special = {
        "image_token_id": ids("<|image_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }
    return replace(config, text=replace(config.text, vocab_size=len(tokenizer.tokenizer), **special))


def _write_model(folder: Path, config: VirtueConfig, tokenizer: Tokenizer) -> None:
    from converters.exporting import ExportRequest, run
    from virtue_jax.model_directory import parameter_shapes, save_model

    shapes = parameter_shapes(config)
    params = {path: random_parameter(path, shape, i) for i, (path, shape) in enumerate(shapes.items())}
    save_model(folder / MODEL, config, params, extras=tokenizer.save)
    run(ExportRequest(model=folder / MODEL, out=folder / EXPORTED))


def random_parameter(path: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Kernels of unit gain, norms near one, an adapter that does something (a fresh one's A has no gradient)."""
    values = np.random.default_rng(seed).standard_normal(shape, np.float32)
    stacked = ".layers." in path or ".blocks." in path or ".rest." in path
    if path.endswith((".scale", ".magnitude")):
        return 1 + 0.1 * values
    if path.endswith((".kernel", ".lora_a", ".lora_b")):
        fan_in = np.prod(shape[:-1]) / (shape[0] if stacked and len(shape) > 2 and "transformer" not in path else 1)
        return values / np.float32(fan_in**0.5) * np.float32(0.1 if path.endswith("lora_b") else 1.0)
    return values if path.endswith("_matrix") else 0.1 * values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    prepare(arguments.out, arguments.quick)


if __name__ == "__main__":
    main()
