"""How long a compiled program takes by two accounts, neither of which is a measurement.

`roofline`: every instruction of the optimised program takes the longer of its arithmetic at the chip's peak and its HBM
traffic at full bandwidth; an attention kernel likewise, its head size padded to what the matrix units take. `cycles`:
what the compiler itself estimated for every instruction ("estimated_cycles") at the chip's clock; it estimates nothing
for kernels, whose arithmetic is taken to run at `KERNEL_EFFICIENCY` of the peak. Of a kernel's traffic both count what
it must read and write once.

In both, loops count by their trips. Copies that the compiler started ahead of their use, and collectives that it let
run beside arithmetic, take nothing (perfect overlap); all other collectives take their bytes over the links of the
torus dimensions that they span, and what passes between slices its bytes over the data-centre network, both without
overlap. Reading data, host transfers and the start of programs are not in it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from jax.sharding import Mesh

from virtue_jax.aot.arithmetic import hbm_bytes, product_flops
from virtue_jax.aot.chips import Chip
from virtue_jax.aot.collectives import DCN, KINDS, Collective, find_collectives
from virtue_jax.aot.hlo import Instruction, Program
from virtue_jax.aot.kernels import Kernel, find_kernels, is_kernel

KERNEL_EFFICIENCY = 0.5  # of the peak, on what a kernel computes: assumed for "cycles"
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_AHEAD = ("copy-start", "slice-start", "async-start")


@dataclass(frozen=True)
class Terms:
    """Seconds of one program on one chip. matrix, attention: arithmetic at the peak. memory: what HBM traffic adds
    where it is slower. communication, dcn: collectives that nothing hides, within and between slices. cycles: of
    everything but communication, by the compiler's estimates. flops: of products and kernels, run by one chip."""

    matrix: float
    attention: float
    memory: float
    communication: float
    dcn: float
    cycles: float
    flops: float

    def __add__(self, other: "Terms") -> "Terms":
        return Terms(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def roofline_seconds(self) -> float:
        return self.matrix + self.attention + self.memory + self.communication + self.dcn

    @property
    def cycles_seconds(self) -> float:
        return self.cycles + self.communication + self.dcn


@dataclass(frozen=True)
class ProgramCost:
    """What one compiled program costs one chip in one run."""

    terms: Terms
    collectives: list[Collective]
    kernels: list[Kernel]


@dataclass(frozen=True)
class InstructionCost:
    """An instruction outside of kernels and collectives, over all its runs. Seconds: arithmetic at the peak, memory as
    in `Terms`, cycles by the compiler's estimate; flops, and bytes to and from HBM."""

    instruction: Instruction
    times: float
    arithmetic: float
    memory: float
    cycles: float
    flops: float
    bytes: float


def instruction_costs(program: Program, chip: Chip) -> Iterator[InstructionCost]:
    """Raises:
    ValueError: a loop whose trips cannot be read.
    """
    for instruction, computation, times in program.executed():
        if is_kernel(instruction) or instruction.opcode.removesuffix("-start").removesuffix("-done") in KINDS:
            continue
        if instruction.opcode in _AHEAD:
            continue
        flops = product_flops(program, instruction, computation)
        moved = hbm_bytes(program, instruction, computation)
        compute, traffic = flops / chip.peak, moved / chip.hbm_bandwidth
        estimated = _CYCLES.search(instruction.attributes)
        cycles = int(estimated[1]) / chip.clock if estimated else max(compute, traffic)
        each = (compute, max(0.0, traffic - compute), cycles, flops, moved)
        yield InstructionCost(instruction, times, *(times * value for value in each))


def program_cost(program: Program, mesh: Mesh, chip: Chip) -> ProgramCost:
    """Raises:
    ValueError: a loop whose trips cannot be read, a kernel that is not known.
    """
    costs = list(instruction_costs(program, chip))
    kernels = find_kernels(program)
    computing = [kernel.flops / chip.peak for kernel in kernels]
    moving = [kernel.bytes / chip.hbm_bandwidth for kernel in kernels]
    waiting = sum(max(0.0, y - x) for x, y in zip(computing, moving, strict=True))
    busy = sum(max(x / KERNEL_EFFICIENCY, y) for x, y in zip(computing, moving, strict=True))
    collectives = find_collectives(program, mesh, chip)
    waits = [one for one in collectives if one.network != DCN and not one.asynchronous]
    return ProgramCost(
        Terms(
            matrix=sum(cost.arithmetic for cost in costs),
            attention=sum(computing),
            memory=sum(cost.memory for cost in costs) + waiting,
            communication=sum(one.seconds for one in waits),
            dcn=sum(one.seconds for one in collectives if one.network == DCN),
            cycles=sum(cost.cycles for cost in costs) + busy,
            flops=sum(cost.flops for cost in costs) + sum(kernel.flops for kernel in kernels),
        ),
        collectives,
        kernels,
    )
