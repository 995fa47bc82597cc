"""Run in a process of 8 virtual devices: the same inputs embedded on one device and on all, as JSON.

python tests/multidevice/embed_rows.py MODEL
"""

import io
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from virtue_jax.config import Compat, Numerics
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.example import Example, VisualPrompt
from virtue_jax.embedding import programs
from virtue_jax.embedding.embedder import Embedder
from virtue_jax.model_directory import load_config, load_model
from virtue_jax.parallel.mesh import MeshConfig, make_mesh


def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    examples = []
    for i in range(24):
        encoded = io.BytesIO()
        height, width = map(int, rng.integers(40, 200, 2))
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(encoded, "PNG")
        prompt = VisualPrompt(box=(1, 2, width / 2, height / 2)) if i % 3 else None
        examples.append(Example(f"number {i}", (encoded.getvalue(),), prompt))
        examples.append(Example("word " * (i + 1)))
    return examples


def main(folder: Path, scratch: str) -> None:
    programs.LENGTHS = 2  # fewer loops to compile
    sam2 = replace(load_config(folder).sam2, image_size=128)
    config, model = load_model(folder, Numerics(), compat=Compat.paper(), sam2=sam2, max_pixels=64 * 28 * 28)
    tokenizer, inputs = Tokenizer.load(folder), examples()
    vectors, devices = {}, {}
    image = Path(scratch) / "image.png"
    image.write_bytes(inputs[2].images[0])
    for name, mesh in {"one": make_mesh(MeshConfig(), jax.devices()[:1]), "all": None}.items():
        embedder = Embedder(config, model, tokenizer, mesh=mesh)
        read, used = embedder._programs.read, set()

        def watched(batch, seen, read=read, used=used):
            out = read(batch, seen)
            used |= {shard.device.id for shard in out.addressable_shards}
            return out

        embedder._programs.read = watched
        vectors[name], devices[name] = embedder.embed(inputs), used
        look = embedder.look(str(image))
        vectors[f"{name} looked"] = look.point_many([{"box": [1, 2, 20, 30], "text": f"{i}"} for i in range(20)])
    print(
        json.dumps(
            {
                "devices": {name: len(used) for name, used in devices.items()},
                "apart": float(np.abs(vectors["one"] - vectors["all"]).max()),
                "looked apart": float(np.abs(vectors["one looked"] - vectors["all looked"]).max()),
                "norm": float(np.linalg.norm(vectors["all"], axis=1).min()),
            }
        )
    )


if __name__ == "__main__":
    assert jax.device_count() == 8, "set XLA_FLAGS=--xla_force_host_platform_device_count=8"
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(sys.argv[1]), scratch)
