"""Embed the lines of a JSONL file: `embedding` float32[N, D], unit length, rows in the order of the lines."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from virtue_jax.cli.parser import positive
from virtue_jax.cli.progress import progress_bar
from virtue_jax.config import POSITION_SCHEMES

if TYPE_CHECKING:
    import numpy as np


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="model directory")
    add(
        "--input",
        required=True,
        metavar="FILE.jsonl",
        help='lines {"image": path or list, "text": ..., "box": [x1,y1,x2,y2], "points": [[x,y,label],...], '
        '"mask": path}; all optional but one of image and text',
    )
    add("--out", required=True, metavar="FILE.npz")
    add("--compat", choices=("released", "paper"), help="behaviour (default: the model's own)")
    add("--positions", choices=POSITION_SCHEMES, help="rotary scheme in place of the behaviour's")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and arithmetic (float32)")
    add("--image-rows", type=positive, default=4, metavar="N", help="examples with images per call of the model (4)")


def run(args: argparse.Namespace) -> None:
    """Writes the embeddings."""
    from virtue_jax.data.formats.jsonl import read_examples
    from virtue_jax.embedding.embedder import Embedder

    if Path(args.out).suffix != ".npz":
        raise ValueError(f"--out {args.out}: expected a name that ends in .npz")
    if not Path(args.out).absolute().parent.is_dir():
        raise ValueError(f"--out {args.out}: the folder does not exist; make it first")
    examples = list(read_examples(args.input))
    embedder = Embedder.load(
        args.model, compat=args.compat, positions=args.positions, dtype=args.dtype, image_rows=args.image_rows
    )
    with progress_bar("embedding", len(examples)) as done:
        embeddings = embedder.embed(examples, progress=done)
    save_npz(Path(args.out), embedding=embeddings)
    print(f"{args.out}: embedding float32{list(embeddings.shape)}")


def save_npz(path: Path, **arrays: "np.ndarray") -> None:
    """Whole or not at all: written beside `path` and renamed."""
    import numpy as np

    unfinished = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        np.savez(unfinished, **arrays)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
