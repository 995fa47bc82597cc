"""`virtue compile --config FILE --topology v5e:16x16`: the step of a run, compiled by the TPU compiler without a TPU.

Exit status: 0 the step compiles and fits; 1 it does not fit (the report says what is largest); 2 not as given.
"""

import dataclasses
import json
import sys
from pathlib import Path

from absl import flags
from rich.console import Console

from virtue_jax.aot.calibration import load
from virtue_jax.aot.print_report import print_report
from virtue_jax.aot.report import Request, step_report
from virtue_jax.aot.topology import prepare_environment
from virtue_jax.cli.run_file import read_run_file
from virtue_jax.config import from_dict
from virtue_jax.train.step.config import TrainConfig
from virtue_jax.train.weights import model_geometry

DOES_NOT_FIT = 1
USAGE = (
    "virtue compile --config configs/NAME.py[:VARIANT] --topology CHIP:AxB[xC] [--slices N] "
    "[--mesh data=-1,fsdp=4,tensor=1] [--batch N] [--json FILE] [--config.x=y ...]"
)
HELP = f"""usage: {USAGE}
--topology: v4, v5e, v5p, v6e or tpu7x and the shape of a slice, like v5e:16x16 or v5p:8x8x8; --slices: so many of them
--mesh: sizes of mesh axes, in place of the run file's (or --config.mesh.fsdp=4)
--batch: pairs of a step; the run file's row groups get as many more or fewer rows, rounded up to what the mesh divides
--effort low: a fifth of the compiler's time or less, without its estimates of cycles
--calibration: factors of `virtue scale --calibrate`; --json: the whole report; --set batch=N is --batch N
Needs no TPU and no weights: pip install 'virtue_jax[tpu]' brings the compiler.
Exit status: 0 compiles and fits; 1 does not fit; 2 cannot be done as given."""


def run(argv: list[str]) -> None:
    """Prints the report, writes it where `--json` says."""
    if "--help" in argv or "-h" in argv:
        print(HELP)
        return
    given, options = read_run_file("virtue compile", _without_set(argv), USAGE, _define)
    if given is None or not options.topology:
        raise ValueError(f"usage: {USAGE}")
    if options.json and not Path(options.json).absolute().parent.is_dir():
        raise ValueError(f"--json {options.json}: no such folder")
    prepare_environment()
    config = _with_mesh(from_dict(TrainConfig, given), options.mesh, options.slices)
    console = Console(soft_wrap=True, highlight=False)
    factors = load(options.calibration) if options.calibration else None
    request = Request(
        config, model_geometry(config), options.topology, options.batch or 0, options.effort == "low", factors
    )
    report = step_report(request, _inputs(argv, options), lambda line: console.print(line))
    print_report(report, console)
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1))
    if not report["fits"]:
        sys.exit(DOES_NOT_FIT)


def _with_mesh(config: TrainConfig, mesh: str, slices: int | None) -> TrainConfig:
    sizes = {"slices": slices} if slices else {}
    for part in mesh.split(",") if mesh else ():
        name, _, size = part.partition("=")
        if name not in ("data", "fsdp", "tensor") or not size.lstrip("-").isdigit():
            raise ValueError(f"--mesh {mesh!r}: {part!r}: expected data=N, fsdp=N or tensor=N, joined by commas")
        sizes[name] = int(size)
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **sizes))


def _without_set(argv: list[str]) -> list[str]:
    """`--set batch=N` as `--batch N`, `--set x.y=z` as `--config.x.y=z`."""
    found, rest = [], list(argv)
    while rest:
        one = rest.pop(0)
        if one not in ("--set", "-set") and not one.startswith("--set="):
            found.append(one)
            continue
        value = one.partition("=")[2] if one.startswith("--set=") else rest.pop(0) if rest else ""
        name, sign, what = value.partition("=")
        if not (name and sign):
            raise ValueError(f"--set {value!r}: expected NAME=VALUE; usage: {USAGE}")
        found.append(f"--batch={what}" if name == "batch" else f"--config.{name}={what}")
    return found


def _inputs(argv: list[str], options: flags.FlagValues) -> dict:
    """What was asked for, as it was asked."""
    line = [part for one in argv for part in one.split("=", 1)]
    overrides = [one for one in argv if one.startswith("--config.")]
    return {
        "config": line[line.index("--config") + 1],
        "topology": options.topology,
        "slices": options.slices or 1,
        "mesh": options.mesh,
        "batch": options.batch or 0,
        "overrides": dict(one.removeprefix("--config.").split("=", 1) for one in overrides if "=" in one),
        "effort": options.effort,
    }


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("topology", "", "CHIP:AxB or CHIP:AxBxC", flag_values=values)
    flags.DEFINE_integer("slices", None, "slices of that topology", lower_bound=1, flag_values=values)
    flags.DEFINE_string("mesh", "", "data=N,fsdp=N,tensor=N", flag_values=values)
    flags.DEFINE_integer("batch", None, "pairs of a step", lower_bound=1, flag_values=values)
    flags.DEFINE_string("json", "", "where the report goes", flag_values=values)
    flags.DEFINE_string("calibration", "", "factors of virtue scale --calibrate", flag_values=values)
    flags.DEFINE_enum("effort", "full", ["full", "low"], "of the compiler", flag_values=values)
