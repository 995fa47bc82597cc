"""Evaluate a model on SCaR: a table, and `scar.json` and `scar.png` in the work directory."""

import argparse
import json
from pathlib import Path

from virtue_jax.cli.parser import positive

MODES = ("prompt", "none", "wrong", "crop")  # of virtue_jax/eval/scar.py, which takes seconds to import


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="model directory")
    add("--task", choices=("scar",), default="scar")
    add("--data", required=True, metavar="PATH", help="SCaR_eval_*.parquet, or a folder of them")
    add("--image-root", metavar="DIR", help="what image paths are relative to")
    add("--workdir", default="runs/eval", metavar="DIR", help="for scar.json and scar.png (runs/eval)")
    add("--prompt", choices=("box", "point", "mask"), default="box", help="how queries point (box)")
    add("--modes", nargs="+", choices=MODES, default=MODES, help="ways of asking (all)")
    add("--limit", type=positive, metavar="N", help="only the first so many questions")
    add("--compat", choices=("released", "paper"), help="behaviour (default: the model's own)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and arithmetic (float32)")
    add("--image-rows", type=positive, default=4, metavar="N", help="queries per call of the model (4)")


def run(args: argparse.Namespace) -> None:
    """Prints the table; writes `scar.json` and `scar.png` into the work directory."""
    from virtue_jax.cli.progress import progress_bar
    from virtue_jax.console import console
    from virtue_jax.data.formats.scar import ScarEvaluation
    from virtue_jax.embedding.embedder import Embedder
    from virtue_jax.eval.report import plot_report, print_report
    from virtue_jax.eval.scar import evaluate_scar

    workdir = Path(args.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    questions = ScarEvaluation(args.data, image_root=args.image_root, prompt=args.prompt)
    embedder = Embedder.load(args.model, compat=args.compat, dtype=args.dtype, image_rows=args.image_rows)
    count = len(questions) if args.limit is None else min(args.limit, len(questions))
    with progress_bar("queries", count * len(args.modes)) as done:
        report = evaluate_scar(embedder, questions, modes=args.modes, limit=args.limit, progress=done)
    print_report(report, console())
    settings = {"model": args.model, "data": args.data, "prompt": args.prompt, "dtype": args.dtype}
    (workdir / "scar.json").write_text(json.dumps({"settings": settings, "results": report}, indent=2) + "\n")
    plot_report(report, workdir / "scar.png")
    print(f"results: {workdir / 'scar.json'}\nplot: {workdir / 'scar.png'}")
