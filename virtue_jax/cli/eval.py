"""Evaluate a model on a task: a table, and `TASK.json` and `TASK.png` in the work directory.

All rows are checked before the model runs. A bad one ends the command, or is left out (--skip-bad) and listed in the
work directory's quarantine.jsonl.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from virtue_jax.atomic_files import replace_text
from virtue_jax.cli.parser import add_model, positive
from virtue_jax.cli.progress import progress_bar
from virtue_jax.eval.open_task import TASKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtue_jax.data.unreadable import Quarantine
    from virtue_jax.embedding.embedder import Embedder
    from virtue_jax.eval.answers import BadRow
    from virtue_jax.eval.result import EvalResult
    from virtue_jax.eval.task import Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add = parser.add_argument
    add("--task", choices=tuple(TASKS), default="scar")
    add("--data", required=True, metavar="PATH", help="SCaR_eval_*.parquet, or a folder of them")
    add("--image-root", metavar="DIR", help="what image paths are relative to")
    add("--workdir", default="runs/eval", metavar="DIR", help="for TASK.json and TASK.png (runs/eval)")
    add("--prompt", choices=("box", "point", "mask"), default="box", help="how queries point (box)")
    add("--modes", nargs="+", metavar="MODE", help="ways of asking; scar: prompt, none, wrong, crop (all)")
    add("--limit", type=positive, metavar="N", help="only the first so many questions")
    add("--skip-bad", action="store_true", help="leave questions out that cannot be read")


def run(args: argparse.Namespace) -> None:
    """Prints the table; writes `TASK.json` and `TASK.png` into the work directory."""
    from virtue_jax.config import Compat
    from virtue_jax.console import console
    from virtue_jax.data.unreadable import Quarantine
    from virtue_jax.embedding.embedder import Embedder
    from virtue_jax.eval.config import EvalConfig
    from virtue_jax.eval.open_task import open_task
    from virtue_jax.eval.plot import plot_result
    from virtue_jax.eval.result import report
    from virtue_jax.eval.table import print_table
    from virtue_jax.model_directory import load_config

    workdir = Path(args.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    modes, limit = tuple(args.modes or ()), args.limit or 0
    root = args.image_root or ""
    config = EvalConfig(args.data, args.task, image_root=root, prompt=args.prompt, modes=modes, limit=limit)
    task = open_task(config, Compat.preset(args.compat) if args.compat else load_config(args.model).compat)
    embedder = Embedder.load(args.model, compat=args.compat, dtype=args.dtype, image_rows=args.image_rows)
    left_out = Quarantine(workdir, fresh=True)
    result = _evaluate(task, embedder, left_out if args.skip_bad else None)
    print_table(result, task.PRESENTATION, console())
    settings = {"model": args.model, "data": args.data, "prompt": args.prompt, "dtype": args.dtype}
    written = {"settings": settings, "results": report(result), "left_out": result.left_out}
    results, plot = workdir / f"{args.task}.json", workdir / f"{args.task}.png"
    replace_text(results, json.dumps(written, indent=2) + "\n")
    plot_result(result, task.PRESENTATION, plot)
    print(f"results: {results}\nplot: {plot}")
    if result.left_out:
        print(f"left out: {left_out.path}")


def _evaluate(task: "Task", embedder: "Embedder", left_out: "Quarantine | None") -> "EvalResult":
    """left_out: where bad rows are listed; None = the first one ends the command."""
    from virtue_jax.eval.evaluate import check_rows, evaluate, refuse_bad

    def skip(bad: "Sequence[BadRow]") -> None:
        left_out.add([row.entry() for row in bad])

    meet = refuse_bad if left_out is None else skip
    count = len(task.rows)
    with progress_bar("checking rows", count) as done:
        bad = check_rows(task, embedder.encoder, done)
    meet(bad)
    if len(bad) == count:
        raise ValueError(f"none of the {count} questions can be read; the first: {bad[0].error}")
    with progress_bar("questions", count - len(bad)) as done:
        return evaluate(task, embedder, left_out=bad, bad=meet, progress=done)
