"""Compile a run's step by the TPU compiler, for a TPU that is not there: does it fit, what does it exchange, how long
does it take? Needs no TPU and no weights: pip install 'virtue_jax[tpu]' brings the compiler.

Exit status: 0 the step compiles and fits; 3 it does not fit (the report says what is largest); 2 not as given.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from virtue_jax.atomic_files import replace_text
from virtue_jax.cli.parser import SETTING, add_run_file, positive
from virtue_jax.cli.run_file import train_config
from virtue_jax.exit_status import DOES_NOT_FIT

if TYPE_CHECKING:
    from virtue_jax.train.step.config import TrainConfig

MESH_AXES = ("data", "fsdp", "tensor")


class _Set(argparse.Action):
    """`--set batch=N` is `--batch N`, `--set x.y=z` is `--config.x.y=z`."""

    def __call__(self, parser, namespace, values, option_string=None):
        name, sign, value = values.partition("=")
        if not (name and sign):
            raise argparse.ArgumentError(self, f"{values!r}: expected NAME=VALUE")
        if name == "batch":
            try:
                namespace.batch = positive(value)
            except argparse.ArgumentTypeError as error:
                raise argparse.ArgumentError(self, f"{values!r}: {error}") from error
        else:
            namespace.settings = [*namespace.settings, f"{SETTING}{values}"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_run_file(parser)
    add(
        "--topology",
        required=True,
        metavar="CHIP:AxB[xC]",
        help="v4, v5e, v5p, v6e or tpu7x and the shape of a slice, like v5e:16x16 or v5p:8x8x8",
    )
    add("--slices", type=positive, metavar="N", help="so many of them")
    add("--mesh", default="", metavar="data=N,fsdp=N,tensor=N", help="sizes of axes, in place of the run file's")
    add(
        "--batch",
        type=positive,
        metavar="N",
        help="pairs of a step; the run file's row groups get as many more or fewer rows, rounded up to what the mesh "
        "divides",
    )
    add("--set", action=_Set, metavar="NAME=VALUE", help="--set batch=N is --batch N, --set x.y=z is --config.x.y=z")
    add("--json", metavar="FILE", help="where the whole report goes")
    add("--calibration", metavar="FILE", help="factors of `virtue scale --calibrate`")
    add(
        "--effort",
        choices=("full", "low"),
        default="full",
        help="low: a fifth of the compiler's time or less, without its estimates of cycles",
    )


def run(args: argparse.Namespace) -> None:
    """Prints the report, writes it where `--json` says."""
    from virtue_jax.aot.calibration import load
    from virtue_jax.aot.print_report import print_report
    from virtue_jax.aot.report import Request, step_report
    from virtue_jax.aot.topology import prepare_environment
    from virtue_jax.console import console
    from virtue_jax.train.weights import model_geometry

    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise ValueError(f"--json {args.json}: no such folder")
    prepare_environment()
    config = _with_mesh(train_config(args), args.mesh, args.slices)
    screen = console(soft_wrap=True, highlight=False)
    factors = load(args.calibration) if args.calibration else None
    request = Request(config, model_geometry(config), args.topology, args.batch or 0, args.effort == "low", factors)
    report = step_report(request, _inputs(args), lambda line: screen.print(line))
    print_report(report, screen)
    if args.json:
        replace_text(args.json, json.dumps(report, indent=1))
    if not report["fits"]:
        sys.exit(DOES_NOT_FIT)


def _with_mesh(config: "TrainConfig", mesh: str, slices: int | None) -> "TrainConfig":
    sizes = {"slices": slices} if slices else {}
    for part in mesh.split(",") if mesh else ():
        name, _, size = part.partition("=")
        if name not in MESH_AXES or not size.lstrip("-").isdigit():
            raise ValueError(f"--mesh {mesh!r}: {part!r}: expected data=N, fsdp=N or tensor=N, joined by commas")
        sizes[name] = int(size)
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **sizes))


def _inputs(args: argparse.Namespace) -> dict:
    """What was asked for, as it was asked."""
    settings = (setting.removeprefix(SETTING).split("=", 1) for setting in args.settings if "=" in setting)
    return {
        "config": args.config,
        "topology": args.topology,
        "slices": args.slices or 1,
        "mesh": args.mesh,
        "batch": args.batch or 0,
        "overrides": dict(settings),
        "effort": args.effort,
    }
