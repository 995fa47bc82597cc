"""Where a compiled step's time goes, by the lines of source that its instructions come from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from virtue_jax.aot.hlo.program import Program
from virtue_jax.aot.roofline import Cost, costs
from virtue_jax.chips import Chip

# Where a path begins that says the same on every machine, and how much of it to leave out.
_ROOTS = {"virtue_jax/": 0, "site-packages/": len("site-packages/")}


@dataclass
class SlowLine:
    """One line of source in one stage; a fusion counts to the line of its root, a kernel by its shape. seconds: by the
    roofline, of which `memory` wait for HBM. cycles: seconds by the compiler's estimate, which at low effort means
    nothing. times: instructions run."""

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
    chips left out (`aot/hlo/collectives.py`)."""
    lines: dict[tuple[str, str], SlowLine] = {}
    for stage, program in programs.items():
        for cost in costs(program, chip):
            source = _source(program, cost)
            line = lines.setdefault((stage, source), SlowLine(stage, source))
            line.times += cost.times
            line.seconds += cost.seconds
            line.memory += cost.memory
            line.cycles += cost.cycles
            line.bytes += cost.bytes
            line.flops += cost.flops
    ordered = sorted(lines.values(), key=lambda line: -line.seconds)
    return [asdict(line) for line in ordered[:count] if line.seconds]


def _source(program: Program, cost: Cost) -> str:
    if cost.kernel:
        return f"{cost.kernel.name}{list(cost.kernel.shape)}"
    source = program.source(cost.instruction) or cost.instruction.opcode
    starts = [source.rfind(root) + skip for root, skip in _ROOTS.items() if root in source]
    return source[max(starts, default=0) :]
