"""A published size as shapes only: how long the abstract model takes to make and to trace, and how large it is.

python -m full_size.shapes --size 7b --inputs DIR --out FILE.json
"""

import argparse
import dataclasses
import json
from math import prod
from pathlib import Path

import jax
from full_size.example_input import read_batch
from full_size.make_checkpoints import listing
from full_size.measured import Figures, peak_gib

from converters import qwen2_vl, sam2
from converters.sources import ArraySource
from virtue_jax.batch import Batch
from virtue_jax.config import Numerics, VirtueConfig
from virtue_jax.models.parameters import abstract_virtue, bind, parameters


def config_of(size: str) -> VirtueConfig:
    """The geometry as the converters read it from the listed names and shapes."""
    listed = listing(size)
    where = Path(f"config.json of {size}")
    vision, text = qwen2_vl.read_geometry(listed.vlm_config, where, has_lm_head=qwen2_vl.LM_HEAD in listed.vlm)
    return VirtueConfig(sam2=sam2.read_geometry(ArraySource(listed.sam2).infos, "sam2"), vision=vision, text=text)


def measure(size: str, batch: Batch) -> Figures:
    figures, config = Figures(size=size), config_of(size)
    with figures.timed("abstract_model"):
        model = abstract_virtue(config, Numerics("bfloat16", "bfloat16"))
    shapes = parameters(model)
    with figures.timed("trace"):
        out = jax.eval_shape(lambda params, batch: bind(model, params)(batch), shapes, batch)
    figures["parameters"] = sum(prod(x.shape) for x in shapes.values())
    figures["bytes_bfloat16"] = sum(prod(x.shape) * x.dtype.itemsize for x in shapes.values())
    figures["embedding"] = list(out.shape)
    figures["geometry"] = dataclasses.asdict(config.text)
    figures["peak_gib"] = peak_gib()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="7b")
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    figures = measure(arguments.size, read_batch(arguments.inputs))
    arguments.out.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
