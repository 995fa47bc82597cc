"""`virtue scale --study NAME ...`: sweeps of `virtue compile`, as a table, CSV, plots and a page; `--calibrate`."""

import argparse
import math
import os
import shlex
import signal
import sys
from pathlib import Path

from rich.console import Console

from virtue_jax.aot.calibration import load
from virtue_jax.aot.study import study_file
from virtue_jax.aot.study.calibrate import calibrate
from virtue_jax.aot.study.content_key import ContentKeys
from virtue_jax.aot.study.entry import Entry, kept, read_entry
from virtue_jax.aot.study.page import Result, complete, write_page, write_plots, write_reports
from virtue_jax.aot.study.point import Point
from virtue_jax.aot.study.results import study_rows
from virtue_jax.aot.study.runner import Limits, Runner
from virtue_jax.aot.study.study_file import Study, presets, read_study
from virtue_jax.aot.study.table import failures, print_table
from virtue_jax.chips import CHIPS
from virtue_jax.cli.run_file import read_run_file

THIS_COMPILE = (sys.executable, "-c", "from virtue_jax.cli.main import main; main()", "compile")
INTERRUPTED, INCOMPLETE = 130, 1


def run(argv: list[str]) -> None:
    """Exit status 1: a point failed, or was not compiled; 130: stopped by Ctrl-C or SIGTERM."""
    args = _parser().parse_args(argv)
    console = Console()
    if args.list:
        for name in presets():
            study = read_study(name)
            console.print(
                f"{name:10s} {len(study.points):3d} points  {study.question}", highlight=False, soft_wrap=True
            )
        return
    if args.calibrate:
        calibrate(
            _pairs(args.calibrate, "RUN_DIR=REPORT.json", "--calibrate"), Path(args.out or "calibration.json"), console
        )
        return
    if not args.study:
        raise ValueError("give --study (a file, a preset of `virtue scale --list`, or all), --list or --calibrate")
    prices, factors = _prices(args.price), load(args.calibration) if args.calibration else None
    studies = [read_study(name) for given in args.study for name in (presets() if given == "all" else [given])]
    if args.dry_run:
        _tell_points(studies, args, console)
        return
    entries = _entries(studies, args, console)
    results = []
    for study in studies:
        own = {point: entries[point] for point in study.points if point in entries}
        results.append(Result(study, study_rows(study, own, prices, factors), own))
    _write(results, args, prices, console)
    if not complete(results):
        sys.exit(INCOMPLETE)


def _write(results: list[Result], args: argparse.Namespace, prices: dict[str, float], console: Console) -> None:
    for result in results:
        print_table(console, result.study.question, result.rows)
        for line in failures(result.rows):
            console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)
    if args.page:
        write_page(Path(args.page), results, prices)
        console.print(f"page: {args.page}", highlight=False)
        return
    out = _out(args)
    for result in results:
        write_plots(out, result)
    write_reports(out, results)
    console.print(f"plots, points.csv and reports: {out}", highlight=False)


def _entries(studies: list[Study], args: argparse.Namespace, console: Console) -> dict[Point, Entry]:
    points = [point for study in studies for point in study.points]
    if args.from_reports:
        return kept(Path(args.from_reports), points)
    limits = Limits(args.workers, args.memory_gib, args.point_gib)
    command = shlex.split(args.compile_command) if args.compile_command else THIS_COMPILE

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    runner = Runner(_cache(args), command, limits, say)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C
    try:
        return runner.run(_keys(points, args))
    except KeyboardInterrupt:
        say("stopped; what is compiled is kept, and the same command goes on from there")
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)


def _keys(points: list[Point], args: argparse.Namespace) -> dict[Point, str]:
    def resolve(arguments: list[str]) -> dict:
        return read_run_file("virtue scale", arguments, "a study's point")[0]

    keys = ContentKeys(resolve, program=args.compile_command or "")
    return {point: keys.key(point) for point in points}


def _tell_points(studies: list[Study], args: argparse.Namespace, console: Console) -> None:
    """Every command that a run of the studies is, and whether its report is there already."""
    keys = _keys([point for study in studies for point in study.points], args)
    told: set[str] = set()
    for study in studies:
        console.print(f"# {study.name}: {study.question}", highlight=False)
        for point in study.points:
            entry = read_entry(_cache(args) / f"{keys[point]}.json")
            state = "again" if keys[point] in told else "in the cache" if entry and entry.report else "to be compiled"
            told.add(keys[point])
            line = shlex.join(["virtue", "compile", *point.arguments()])
            console.print(f"{line}  # {point.name}: {state}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"# {len(told)} compilations", highlight=False)


def _out(args: argparse.Namespace) -> Path:
    return Path(args.out or "runs/scale")


def _cache(args: argparse.Namespace) -> Path:
    return Path(args.cache) if args.cache else _out(args) / "cache"


def _pairs(given: list[str], form: str, flag: str) -> list[tuple[str, str]]:
    pairs = [tuple(each.rsplit("=", 1)) for each in given]
    wrong = [each for each, pair in zip(given, pairs, strict=True) if len(pair) != 2 or not all(pair)]
    if wrong:
        raise ValueError(f"{flag} {wrong[0]}: expected {form}")
    return pairs


def _prices(given: list[str]) -> dict[str, float]:
    """USD per chip-hour by chip."""
    prices = {}
    for chip, text in _pairs(given, "CHIP=USD per chip-hour, as v5e=1.2", "--price"):
        try:
            price = float(text)
        except ValueError:
            price = math.nan
        if chip not in CHIPS or not 0 < price < math.inf:
            raise ValueError(f"--price {chip}={text}: expected one of {', '.join(CHIPS)} = USD per chip-hour, above 0")
        prices[chip] = price
    return prices


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="virtue scale",
        description="Scaling studies by ahead-of-time compilation.",
        epilog=study_file.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--study", action="append", metavar="NAME", help="a file, a preset, or all (presets); may be given again")
    add("--list", action="store_true", help="the presets, and nothing else")
    add("--dry-run", action="store_true", help="the compile commands, and nothing else")
    add("--out", metavar="PATH", help="folder (runs/scale); with --calibrate: file (calibration.json)")
    add("--cache", metavar="DIR", help="reports by content (OUT/cache)")
    add("--page", metavar="FILE.md", help="a page, with its plots and reports in the folder of its name")
    add("--from", dest="from_reports", metavar="DIR", help="reports of an earlier run; nothing is compiled")
    add("--price", action="append", default=[], metavar="CHIP=USD", help="per chip-hour; may be given again")
    add("--calibration", metavar="FILE", help="factors of `--calibrate`, for further figures")
    add(
        "--workers", type=_count, default=max(1, (os.cpu_count() or 2) // 2), metavar="N", help="compilations at a time"
    )
    add(
        "--memory-gib", type=float, default=_memory_gib(), metavar="G", help="of all compilations (3/4 of this machine)"
    )
    add("--point-gib", type=float, default=8.0, metavar="G", help="of one compilation, until one was measured (8)")
    add("--compile-command", metavar="LINE", help="in place of `virtue compile` (a part of the content)")
    add("--calibrate", nargs="+", metavar="RUN=REPORT", help="fit factors to runs' measured steps: RUN_DIR=REPORT.json")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _memory_gib() -> float:
    """Three quarters of the machine's."""
    return round(0.75 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
