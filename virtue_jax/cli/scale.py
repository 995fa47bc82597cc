"""Scaling studies by ahead-of-time compilation: sweeps of `virtue compile`, as a table, CSV, plots and a page; and
factors that fit its predictions to runs' measured steps (--calibrate).

Exit status: 0 every point is there; 4 a point failed, or was not compiled; 2 cannot be done as given; 130 stopped by
Ctrl-C or SIGTERM: what is compiled is kept, and the same command goes on from there.
"""

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
from virtue_jax.cli.parser import positive
from virtue_jax.cli.run_file import read_run_file
from virtue_jax.console import console
from virtue_jax.exit_status import INCOMPLETE, INTERRUPTED

THIS_COMPILE = (sys.executable, "-c", "from virtue_jax.cli.main import main; main()", "compile")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = study_file.__doc__
    add = parser.add_argument
    add("--study", action="append", metavar="NAME", help="a file, a preset, or all (presets); may be given again")
    add("--list", action="store_true", help="the presets, and nothing else")
    add("--dry-run", action="store_true", help="the compile commands, and nothing else")
    add("--out", metavar="PATH", help="folder (runs/scale); with --calibrate: file (calibration.json)")
    add("--cache", metavar="DIR", help="reports by content (OUT/cache)")
    add("--page", metavar="FILE.md", help="a page, with its plots and reports in the folder of its name")
    add("--from", dest="from_reports", metavar="DIR", help="reports of an earlier run; nothing is compiled")
    add("--price", action="append", default=[], type=_price, metavar="CHIP=USD", help="per chip-hour; again for others")
    add("--calibration", metavar="FILE", help="factors of `--calibrate`, for further figures")
    workers = max(1, (os.cpu_count() or 2) // 2)
    add("--workers", type=positive, default=workers, metavar="N", help=f"compilations at a time ({workers})")
    memory = _memory_gib()
    add("--memory-gib", type=float, default=memory, metavar="G", help=f"of all compilations ({memory}: 3/4 of all)")
    add("--point-gib", type=float, default=8.0, metavar="G", help="of one compilation, until one was measured (8)")
    add("--compile-command", metavar="LINE", help="in place of `virtue compile` (a part of the content)")
    add("--calibrate", nargs="+", type=_measured_run, metavar="RUN_DIR=REPORT.json", help="fit factors to these runs")


def run(args: argparse.Namespace) -> None:
    """Lists, calibrates or compiles, as the options say."""
    if args.list:
        _print_presets()
    elif args.calibrate:
        calibrate(args.calibrate, Path(args.out or "calibration.json"), console())
    elif args.study:
        studies = [read_study(name) for asked in args.study for name in (presets() if asked == "all" else [asked])]
        factors = load(args.calibration) if args.calibration else None
        if args.dry_run:
            _print_points(studies, args)
        else:
            _run_studies(studies, factors, args)
    else:
        raise ValueError("give --study (a file, a preset of `virtue scale --list`, or all), --list or --calibrate")


def _run_studies(studies: list[Study], factors: dict | None, args: argparse.Namespace) -> None:
    prices = dict(args.price)
    entries = _entries(studies, args)
    results = []
    for study in studies:
        own = {point: entries[point] for point in study.points if point in entries}
        results.append(Result(study, study_rows(study, own, prices, factors), own))
    _write(results, args, prices)
    if not complete(results):
        sys.exit(INCOMPLETE)


def _write(results: list[Result], args: argparse.Namespace, prices: dict[str, float]) -> None:
    screen = _plain_console()
    for result in results:
        print_table(screen, result.study.question, result.rows)
        for line in failures(result.rows):
            screen.print(line, style="red")
    if args.page:
        write_page(Path(args.page), results, prices)
        screen.print(f"page: {args.page}")
        return
    out = _out(args)
    for result in results:
        write_plots(out, result)
    write_reports(out, results)
    screen.print(f"plots, points.csv and reports: {out}")


def _entries(studies: list[Study], args: argparse.Namespace) -> dict[Point, Entry]:
    points = [point for study in studies for point in study.points]
    if args.from_reports:
        return kept(Path(args.from_reports), points)
    limits = Limits(args.workers, args.memory_gib, args.point_gib)
    command = shlex.split(args.compile_command) if args.compile_command else THIS_COMPILE
    screen = _plain_console()
    runner = Runner(_cache(args), command, limits, screen.print)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C
    try:
        return runner.run(_keys(points, args))
    except KeyboardInterrupt:
        screen.print("stopped; what is compiled is kept, and the same command goes on from there")
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)


def _keys(points: list[Point], args: argparse.Namespace) -> dict[Point, str]:
    keys = ContentKeys(read_run_file, program=args.compile_command or "")
    return {point: keys.key(point) for point in points}


def _print_presets() -> None:
    screen = _plain_console()
    for name in presets():
        study = read_study(name)
        screen.print(f"{name:10s} {len(study.points):3d} points  {study.question}")


def _print_points(studies: list[Study], args: argparse.Namespace) -> None:
    """Every command that a run of the studies is, and whether its report is there already."""
    screen = _plain_console()
    keys = _keys([point for study in studies for point in study.points], args)
    printed: set[str] = set()
    for study in studies:
        screen.print(f"# {study.name}: {study.question}")
        for point in study.points:
            entry = read_entry(_cache(args) / f"{keys[point]}.json")
            state = "in the cache" if entry and entry.report else "to be compiled"
            state = "again" if keys[point] in printed else state
            printed.add(keys[point])
            line = shlex.join(["virtue", "compile", *point.arguments()])
            screen.print(f"{line}  # {point.name}: {state}")
    screen.print(f"# {len(printed)} compilations")


def _plain_console() -> Console:
    """For lines of any length and sign."""
    return console(highlight=False, markup=False, soft_wrap=True)


def _out(args: argparse.Namespace) -> Path:
    return Path(args.out or "runs/scale")


def _cache(args: argparse.Namespace) -> Path:
    return Path(args.cache) if args.cache else _out(args) / "cache"


def _measured_run(text: str) -> tuple[str, str]:
    """(work directory, report) of "RUN_DIR=REPORT.json"."""
    directory, _, report = text.rpartition("=")
    if not (directory and report):
        raise argparse.ArgumentTypeError(f"{text}: expected RUN_DIR=REPORT.json")
    return directory, report


def _price(text: str) -> tuple[str, float]:
    """(chip, USD per chip-hour) of "v5e=1.2"."""
    chip, _, amount = text.partition("=")
    try:
        price = float(amount)
    except ValueError:
        price = math.nan
    if chip not in CHIPS or not 0 < price < math.inf:
        raise argparse.ArgumentTypeError(
            f"{text}: expected one of {', '.join(CHIPS)} = USD per chip-hour, above 0, as v5e=1.2"
        )
    return chip, price


def _memory_gib() -> float:
    """Three quarters of the machine's."""
    return round(0.75 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
