"""`virtue embed --model DIR --input FILE.jsonl --out FILE.npz [...]`"""

import argparse
import os
from pathlib import Path

import numpy as np

from virtue_jax.cli.progress import progress_bar
from virtue_jax.config import POSITION_SCHEMES
from virtue_jax.data.formats.jsonl import read_examples
from virtue_jax.embedding.embedder import Embedder


def run(argv: list[str]) -> None:
    """Writes `embedding` float32[N, D], unit length, rows in the order of the input's lines."""
    args = _parser().parse_args(argv)
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


def save_npz(path: Path, **arrays: np.ndarray) -> None:
    """Whole or not at all: written beside `path` and renamed."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        np.savez(unfinished, **arrays)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="virtue embed", description="Embed the lines of a JSONL file.")
    parser.add_argument("--model", required=True, metavar="DIR", help="model directory")
    parser.add_argument(
        "--input",
        required=True,
        metavar="FILE.jsonl",
        help='lines {"image": path or list, "text": ..., "box": [x1,y1,x2,y2], "points": [[x,y,label],...], '
        '"mask": path}; all optional but one of image and text',
    )
    parser.add_argument("--out", required=True, metavar="FILE.npz")
    parser.add_argument("--compat", choices=("released", "paper"), help="behaviour (default: the model's own)")
    parser.add_argument("--positions", choices=POSITION_SCHEMES, help="rotary scheme in place of the behaviour's")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and arithmetic")
    parser.add_argument("--image-rows", type=int, default=1, help="rows of images per call of the model on a device")
    return parser
