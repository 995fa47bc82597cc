"""How long a compiled program takes by two accounts, neither of which is a measurement.

`roofline`: every instruction of the optimised program takes the longer of its arithmetic at the chip's peak and its HBM
traffic at full bandwidth; an attention kernel likewise, its head size padded to what the matrix units take. `cycles`:
what the compiler itself estimated for every instruction ("estimated_cycles") at the chip's clock; it estimates nothing
for kernels, whose arithmetic is taken to run at `KERNEL_EFFICIENCY` of the peak.

In both, loops count by their trips. Copies that the compiler started ahead of their use, and collectives that it let
run beside arithmetic, take nothing (perfect overlap); all other collectives take their bytes over the links of the
torus dimensions that they span, and what passes between slices its bytes over the data-centre network, both without
overlap. Reading data, host transfers and the start of programs are not in it.
"""

import re
from dataclasses import dataclass

from jax.sharding import Mesh

from virtue_jax.aot.arithmetic import hbm_bytes, product_flops
from virtue_jax.aot.chips import Chip
from virtue_jax.aot.collectives import DCN, KINDS, Collective, find_collectives
from virtue_jax.aot.hlo import Program
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


def program_cost(program: Program, mesh: Mesh, chip: Chip) -> ProgramCost:
    """Raises:
    ValueError: a loop whose trips cannot be read, a kernel that is not known.
    """
    matrix = memory = cycles = flops = 0.0
    for instruction, computation, times in program.executed():
        if is_kernel(instruction) or instruction.opcode.removesuffix("-start").removesuffix("-done") in KINDS:
            continue
        if instruction.opcode in _AHEAD:
            continue
        arithmetic = product_flops(program, instruction, computation)
        traffic = hbm_bytes(program, instruction, computation) / chip.hbm_bandwidth
        compute = arithmetic / chip.peak
        flops += times * arithmetic
        matrix += times * compute
        memory += times * max(0.0, traffic - compute)
        estimated = _CYCLES.search(instruction.attributes)
        cycles += times * (int(estimated[1]) / chip.clock if estimated else max(compute, traffic))
    kernels = find_kernels(program)
    attention = sum(kernel.flops for kernel in kernels) / chip.peak
    collectives = find_collectives(program, mesh, chip)
    waits = [one for one in collectives if one.network != DCN and not one.asynchronous]
    return ProgramCost(
        Terms(
            matrix=matrix,
            attention=attention,
            memory=memory,
            communication=sum(one.seconds for one in waits),
            dcn=sum(one.seconds for one in collectives if one.network == DCN),
            cycles=cycles + attention / KERNEL_EFFICIENCY,
            flops=flops + sum(kernel.flops for kernel in kernels),
        ),
        collectives,
        kernels,
    )
