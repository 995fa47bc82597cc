"""One real image file with a box and a text, and the arrays that our data pipeline makes of it.

    python -m full_size.example_input --model DIR --out DIR

Both sides of the comparison read these arrays; that the pipeline makes the right ones is what the golden tests show.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from virtue_jax.batch import Batch
from virtue_jax.config import Compat
from virtue_jax.data.encoding.encode import ExampleEncoder
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.formats.jsonl import parse_example
from virtue_jax.data.packing.first_fit import vision_places
from virtue_jax.data.packing.need import need_of, row_shape
from virtue_jax.data.packing.pack import pack_rows
from virtue_jax.data.scenes import make_scene
from virtue_jax.model_directory import load_config

TEXT = (
    "Find the caption that best describes the segmented object, considering both local details and global context in "
    "the given image."
)
EXAMPLES = "examples.json"
ARRAYS = "batch.npz"
FACTS = "facts.json"


def write_example(out: Path) -> list[dict]:
    """A 640x480 scene as a PNG file; two examples (lines of `virtue embed`) with the boxes of two of its objects."""
    scene = make_scene(0, 0, width=(640, 640), height=(480, 480), objects=(3, 6))
    Image.fromarray(scene.image).save(out / "scene.png")
    examples = []
    for thing in scene.objects[:2]:
        x, y, w, h = map(int, thing.box)
        examples.append({"image": str(out / "scene.png"), "text": TEXT, "box": [x, y, x + w, y + h]})
    (out / EXAMPLES).write_text(json.dumps(examples, indent=2))
    return examples


def write_batch(model: Path, examples: list[dict], out: Path) -> Batch:
    """The first example alone in a row without padding, under the paper's behaviour.

    Of the second one only the prompt's points are kept: the same image and text with another object pointed at.
    """
    config = load_config(model)
    encoder = ExampleEncoder(config, Tokenizer.load(model), Compat.paper())
    encoded, other = (encoder.encode(parse_example(example, Path(), "example")) for example in examples)
    shape = row_shape([[encoded]])
    batch = pack_rows([[encoded]], shape, config, vision=vision_places([need_of([encoded])], shape))
    np.savez(out / ARRAYS, **{name: x for name, x in batch._asdict().items() if x is not None})
    facts = {
        "image_token_id": config.text.image_token_id,
        "grid": encoded.images[0].grid,
        "slots": batch.tokens.shape[1],
        "vision_tokens": encoded.images[0].vision_tokens,
        "segmentation_tokens": config.segmentation_tokens,
        "other_points": other.prompt.points.tolist(),
    }
    (out / FACTS).write_text(json.dumps(facts))
    return batch


def read_batch(folder: Path) -> Batch:
    with np.load(folder / ARRAYS) as file:
        return Batch(**{name: file[name] for name in file.files})


def read_facts(folder: Path) -> dict:
    return json.loads((folder / FACTS).read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_batch(arguments.model, write_example(arguments.out), arguments.out)


if __name__ == "__main__":
    main()
