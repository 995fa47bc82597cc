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

from virtue_jax.aot.hlo.arithmetic import hbm_bytes, product_flops
from virtue_jax.aot.hlo.collectives import DCN, KINDS, Collective, find_collectives
from virtue_jax.aot.hlo.kernels import Kernel, is_kernel, read_kernel
from virtue_jax.aot.hlo.program import Instruction, Program
from virtue_jax.chips import Chip

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
class Cost:
    """An instruction or a kernel over all its runs, collectives left out. Seconds: compute at the peak, memory and
    cycles as in `Terms`. flops; bytes to and from HBM. kernel: None for an instruction."""

    instruction: Instruction
    kernel: Kernel | None
    times: float
    compute: float
    memory: float
    cycles: float
    flops: float
    bytes: float

    @property
    def seconds(self) -> float:
        return self.compute + self.memory


def costs(program: Program, chip: Chip) -> Iterator[Cost]:
    """What every instruction of one run costs on a chip, but for those that exchange or move data ahead.

    Raises:
        ValueError: a loop whose trips cannot be read, a kernel that is not known.
    """
    for instruction, computation, times in program.executed():
        if instruction.opcode in _AHEAD or instruction.opcode.removesuffix("-start").removesuffix("-done") in KINDS:
            continue
        kernel, estimated = None, _CYCLES.search(instruction.attributes)
        if is_kernel(instruction):
            kernel = read_kernel(program, instruction, computation, times)
            flops, moved = kernel.flops, kernel.bytes
        else:
            flops = times * product_flops(program, instruction, computation)
            moved = times * hbm_bytes(program, instruction, computation)
        compute, traffic = flops / chip.peak, moved / chip.hbm_bandwidth
        cycles = max(compute / KERNEL_EFFICIENCY if kernel else compute, traffic)
        if estimated and not kernel:
            cycles = times * int(estimated[1]) / chip.clock
        yield Cost(instruction, kernel, times, compute, max(0.0, traffic - compute), cycles, flops, moved)


def program_cost(program: Program, mesh: Mesh, chip: Chip) -> ProgramCost:
    """The seconds of one run of a program compiled for `mesh`, with its exchange and its kernels.

    Raises:
        ValueError: a loop whose trips cannot be read, a kernel that is not known.
    """
    instruction_costs = list(costs(program, chip))
    collectives = find_collectives(program, mesh, chip)
    waits = [collective for collective in collectives if collective.network != DCN and not collective.asynchronous]
    return ProgramCost(
        Terms(
            matrix=sum(cost.compute for cost in instruction_costs if not cost.kernel),
            attention=sum(cost.compute for cost in instruction_costs if cost.kernel),
            memory=sum(cost.memory for cost in instruction_costs),
            communication=sum(collective.seconds for collective in waits),
            dcn=sum(collective.seconds for collective in collectives if collective.network == DCN),
            cycles=sum(cost.cycles for cost in instruction_costs),
            flops=sum(cost.flops for cost in instruction_costs),
        ),
        collectives,
        [cost.kernel for cost in instruction_costs if cost.kernel],
    )
