"""`virtue eval --model DIR --task scar --data DIR [--workdir DIR] [...]`"""

import argparse
import json
from pathlib import Path

from rich.console import Console

from virtue_jax.cli.progress import progress_bar
from virtue_jax.data.formats.scar import ScarEvaluation
from virtue_jax.embedding.embedder import Embedder
from virtue_jax.eval.report import plot_report, print_report
from virtue_jax.eval.scar import MODES, evaluate_scar


def run(argv: list[str]) -> None:
    """Prints the table; writes `scar.json` and `scar.png` into the work directory."""
    args = _parser().parse_args(argv)
    workdir = Path(args.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    questions = ScarEvaluation(args.data, image_root=args.image_root, prompt=args.prompt)
    embedder = Embedder.load(args.model, compat=args.compat, dtype=args.dtype, image_rows=args.image_rows)
    count = len(questions) if args.limit is None else min(args.limit, len(questions))
    with progress_bar("queries", count * len(args.modes)) as done:
        report = evaluate_scar(embedder, questions, modes=args.modes, limit=args.limit, progress=done)
    print_report(report, Console())
    settings = {"model": args.model, "data": args.data, "prompt": args.prompt, "dtype": args.dtype}
    (workdir / "scar.json").write_text(json.dumps({"settings": settings, "results": report}, indent=2) + "\n")
    plot_report(report, workdir / "scar.png")
    print(f"results: {workdir / 'scar.json'}\nplot: {workdir / 'scar.png'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="virtue eval", description="Evaluate a model on SCaR.")
    parser.add_argument("--model", required=True, metavar="DIR", help="model directory")
    parser.add_argument("--task", choices=("scar",), default="scar")
    parser.add_argument("--data", required=True, metavar="PATH", help="SCaR_eval_*.parquet, or a folder of them")
    parser.add_argument("--image-root", metavar="DIR", help="what image paths are relative to")
    parser.add_argument("--workdir", default="runs/eval", metavar="DIR", help="for scar.json and scar.png")
    parser.add_argument("--prompt", choices=("box", "point", "mask"), default="box", help="how queries point")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="ways of asking (default: all)")
    parser.add_argument("--limit", type=int, help="only the first so many questions")
    parser.add_argument("--compat", choices=("released", "paper"), help="behaviour (default: the model's own)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--image-rows", type=int, default=1, help="rows of images per call of the model on a device")
    return parser
