"""What `virtue compile` says of a run on chips that are not there: its memory, its traffic, its time."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from virtue_jax.aot.calibration import Factors, calibrated
from virtue_jax.aot.compile_step import CompiledStage, CompiledStep, compile_step
from virtue_jax.aot.largest import largest_arrays
from virtue_jax.aot.roofline import ProgramCost, Terms, program_cost
from virtue_jax.aot.slowest import slowest_lines
from virtue_jax.aot.topology import topology_devices
from virtue_jax.aot.workload import published_work, with_batch
from virtue_jax.aot.xla_flags import FLAGS
from virtue_jax.chips import Chip, chip_of
from virtue_jax.config import VirtueConfig
from virtue_jax.parallel.mesh import make_mesh, row_shards
from virtue_jax.train.cost.fitting import fitted_setup
from virtue_jax.train.cost.flops import executed_flops, mfu, useful_flops
from virtue_jax.train.cost.work import Work, capacity
from virtue_jax.train.step.config import TrainConfig
from virtue_jax.train.step.setup import TrainSetup

FORMAT = 1


@dataclass(frozen=True)
class Request:
    """What to compile. batch: pairs of a step, 0 = the run file's. low_effort: without "cycles" (`compile_step`)."""

    config: TrainConfig
    virtue: VirtueConfig
    topology: str
    batch: int = 0
    low_effort: bool = False
    factors: Factors | None = None


def step_report(request: Request, inputs: Mapping, say=lambda line: None) -> dict:
    """The report as JSON-able values; `inputs` are told in it as they are.

    Raises:
        ValueError: a topology, mesh or run that cannot be; a program that cannot be read.
    """
    chip = chip_of(request.topology)
    mesh = make_mesh(request.config.mesh, topology_devices(request.topology, request.config.mesh.slices))
    config = request.config
    config = with_batch(config, request.batch, row_shards(mesh)) if request.batch else config
    config = _with_memory(config, chip)
    config, run = fitted_setup(config, request.virtue, mesh, say)
    step = compile_step(run, FLAGS[chip.name], low_effort=request.low_effort)
    useful = published_work(config, request.virtue)
    return {
        "format": FORMAT,
        "inputs": dict(inputs),
        "versions": {name: _version(name) for name in ("jax", "libtpu")},
        "chip": chip.name,
        "chips": mesh.devices.size // chip.devices_per_chip,
        "mesh": {**mesh.shape, "slices": config.mesh.slices},
        "batch": config.batch_size,
        "pairs": useful[0] if useful else None,
        "numerics": asdict(config.numerics),
        "rows": {
            name: {"rows": group.rows, "micro_batches": group.micro_batches, **asdict(group.shape)}
            for name, group in config.data.rows.items()
        },
        **_memory(step, run, chip),
        **_costs(step, run, config, request, chip, useful),
        "compile_seconds": {name: round(stage.seconds, 1) for name, stage in step.stages.items()},
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _with_memory(config: TrainConfig, chip: Chip) -> TrainConfig:
    """What is chosen by memory is chosen for the chip's."""
    return config if config.memory_gib else replace(config, memory_gib=chip.hbm / 2**30)


def _memory(step: CompiledStep, run: TrainSetup, chip: Chip) -> dict:
    outputs = {
        "towers": 0,
        "gradients": step.stages["towers"].memory.outputs,
        "update": step.stages["gradients"].memory.outputs,
    }
    whole = sum(step.resident.values())
    stages = {name: _stage_memory(stage, whole, outputs[name]) for name, stage in step.stages.items()}
    failed = {name: stage.failure for name, stage in step.stages.items() if stage.failure}
    peak = max(stage["peak"] for stage in stages.values())
    return {
        "fits": not failed and peak <= chip.hbm,
        "failures": failed,
        "memory": {
            "size": chip.hbm,
            "peak": None if failed else peak,
            "headroom": None if failed else chip.hbm - peak,
            "resident": dict(step.resident),
            "stages": stages,
            "largest": [asdict(array) for array in largest_arrays(run, step.traced)],
        },
    }


def _stage_memory(stage: CompiledStage, resident: int, made_before: int) -> dict:
    """peak: what the stage's own program takes, and what stays beside it although the stage does not read it."""
    beside = max(0, resident + made_before - stage.memory.arguments)
    return asdict(stage.memory) | {"peak": stage.memory.peak + beside}


def _costs(step: CompiledStep, run: TrainSetup, config: TrainConfig, request: Request, chip: Chip, useful) -> dict:
    flops = _flops(run, config, request.virtue, useful)
    programs = {name: stage.program for name, stage in step.stages.items()}
    if any(program is None for program in programs.values()):
        unknown = ("waste", "collectives", "kernels", "terms", "slowest", "prediction")
        return {"flops": flops} | dict.fromkeys(unknown)
    costs = {name: program_cost(program, run.mesh, chip) for name, program in programs.items()}
    terms = sum((cost.terms for cost in costs.values()), Terms(*[0.0] * 7))
    devices = run.mesh.devices.size
    flops["compiled"] = terms.flops * devices
    needed = flops["useful"] or flops["capacity"]
    pairs = useful[0] if useful else config.batch_size
    named = {name: getattr(terms, name) for name in ("matrix", "attention", "memory", "communication", "dcn")}

    def prediction(seconds: float) -> dict:
        utilisation = mfu(needed, seconds, chip.peak * devices)
        return {"seconds": seconds, "mfu": utilisation, "pairs_per_second": pairs / seconds}

    return {
        "flops": flops,
        "waste": 1 - needed / flops["compiled"],
        "collectives": _collectives(costs),
        "kernels": [{"stage": name, **asdict(kernel)} for name, cost in costs.items() for kernel in cost.kernels],
        "terms": named,
        "slowest": slowest_lines(programs, chip),
        "stage_seconds": {
            name: {"roofline": cost.terms.roofline_seconds, "cycles": cost.terms.cycles_seconds}
            for name, cost in costs.items()
        },
        "prediction": {
            "roofline": prediction(terms.roofline_seconds),
            "cycles": None if request.low_effort else prediction(terms.cycles_seconds),
        },
        "calibrated": None if request.factors is None else prediction(calibrated(named, request.factors)),
    }


def _flops(run: TrainSetup, config: TrainConfig, virtue: VirtueConfig, useful) -> dict[str, float | None]:
    """Of a step, over all devices; `compiled` is left open."""
    trainable, groups = set(run.state.trainable), config.data.rows.values()
    room = sum((capacity(group) for group in groups), Work())
    return {
        "useful": useful_flops(virtue, useful[1], trainable).total if useful else None,
        "capacity": useful_flops(virtue, room, trainable).total,
        "executed": executed_flops(virtue, groups, config.numerics, trainable).total,
        "compiled": None,
    }


def _collectives(costs: Mapping[str, ProgramCost]) -> list[dict]:
    """One line for each kind, place, axes and purpose, the largest first."""
    lines: dict[tuple, dict] = {}
    for stage, cost in costs.items():
        for collective in cost.collectives:
            key = (
                stage,
                collective.kind,
                collective.axes,
                collective.network,
                collective.asynchronous,
                collective.what,
            )
            line = lines.setdefault(key, {"count": 0.0, "bytes": 0.0, "seconds": 0.0})
            for name in line:
                line[name] += getattr(collective, name)
    names = ("stage", "kind", "axis", "network", "asynchronous", "what")
    table = [dict(zip(names, key, strict=True)) | line for key, line in lines.items()]
    return sorted(table, key=lambda line: -line["bytes"])
