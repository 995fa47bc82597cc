"""Where a compiled step's time goes, by the lines of source that its instructions come from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from virtue_jax.aot.chips import Chip
from virtue_jax.aot.hlo import Program
from virtue_jax.aot.kernels import find_kernels
from virtue_jax.aot.roofline import KERNEL_EFFICIENCY, instruction_costs


@dataclass
class SlowLine:
    """One line of source in one stage; a fusion counts to the line of its root. seconds: by the roofline, of which
    `memory` wait for HBM. cycles: seconds by the compiler's estimate. times: instructions run."""

    stage: str
    source: str
    times: float = 0.0
    seconds: float = 0.0
    memory: float = 0.0
    cycles: float = 0.0
    bytes: float = 0.0
    flops: float = 0.0


def slowest_lines(programs: Mapping[str, Program], chip: Chip, count: int = 24) -> list[dict]:
    """`SlowLine`s of the stages' programs as JSON-able values, the slowest by the roofline first; exchange between
    chips left out (`aot/collectives.py`)."""
    lines: dict[tuple[str, str], SlowLine] = {}
    for stage, program in programs.items():
        for cost in instruction_costs(program, chip):
            source = program.source(cost.instruction) or cost.instruction.opcode
            line = _line(lines, stage, source[source.rfind("virtue_jax/") :] if "virtue_jax/" in source else source)
            line.times += cost.times
            line.seconds += cost.arithmetic + cost.memory
            line.memory += cost.memory
            line.cycles += cost.cycles
            line.bytes += cost.bytes
            line.flops += cost.flops
        for kernel in find_kernels(program):
            line = _line(lines, stage, f"{kernel.name}{list(kernel.shape)}")
            compute, traffic = kernel.flops / chip.peak, kernel.bytes / chip.hbm_bandwidth
            line.times += kernel.count
            line.seconds += max(compute, traffic)
            line.memory += max(0.0, traffic - compute)
            line.cycles += max(compute / KERNEL_EFFICIENCY, traffic)
            line.bytes += kernel.bytes
            line.flops += kernel.flops
    ordered = sorted(lines.values(), key=lambda line: -line.seconds)
    return [asdict(line) for line in ordered[:count] if line.seconds]


def _line(lines: dict[tuple[str, str], SlowLine], stage: str, source: str) -> SlowLine:
    return lines.setdefault((stage, source), SlowLine(stage, source))
