"""What the devices of a compiled program say to one another: by kind, mesh axes, network, bytes and how often."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from virtue_jax.aot.hlo.program import Computation, Instruction, Program, operation
from virtue_jax.chips import Chip

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
ICI, DCN = "ici", "dcn"
_EXPLICIT = re.compile(r"replica_groups=\{(\{[0-9,{} ]*\})\}")
_IOTA = re.compile(r"replica_groups=\[([0-9,]+)\]<=\[([0-9,]+)\](?:T\(([0-9,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([0-9,]+)\](?:T\(([0-9,]+)\))?\))? \{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{(\{[0-9,{} ]*\})\}")


@dataclass(frozen=True)
class Collective:
    """One kind of exchange at one place of a program. axes: of the mesh, joined by +. count: how often in a step.
    bytes: that one chip sends, all times together. seconds: of all of them at the network's full speed. asynchronous:
    whether the compiler let arithmetic run beside it. what: the operation it serves."""

    kind: str
    axes: str
    network: str
    count: float
    bytes: float
    seconds: float
    asynchronous: bool
    what: str


def find_collectives(program: Program, mesh: Mesh, chip: Chip) -> list[Collective]:
    """All collectives of one run of a program compiled for the mesh.

    Between slices, the compiler sends what it has summed within each over the data-centre network: those sends are
    listed as the kind they are part of.
    """
    listed = []
    for instruction, times, asynchronous in _instructions(program):
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            listed.append(_collective(kind, instruction, times, asynchronous, mesh, chip))
        elif instruction.opcode == "send" and "megascale" in instruction.attributes:
            listed.append(_between_slices(instruction, times, chip))
    return listed


def _instructions(program: Program) -> Iterator[tuple[Instruction, float, bool]]:
    """Every collective once per run of it, whether it stands alone, in an asynchronous wrapper, or begins in a fusion
    with arithmetic (it then stands in each fusion that it runs beside)."""
    wrapped = {
        name
        for computation in program.computations.values()
        for start in computation.instructions.values()
        if start.opcode == "async-start"
        for name in start.called.values()
    }
    for instruction, computation, times in program.executed():
        if instruction.opcode == "fusion":
            inner = program.computations[instruction.called["calls"]]
            yield from ((part, times, begins) for part, begins in _fused(inner))
        else:
            yield instruction, times, instruction.opcode.endswith("-start") or computation.name in wrapped


def _fused(inner: Computation) -> Iterator[tuple[Instruction, bool]]:
    """Collectives of a fusion, and whether they run beside arithmetic; not those that began in an earlier one."""
    begins = any("AsyncCollectiveStart" in part.attributes for part in inner.instructions.values())
    for part in inner.instructions.values():
        if begins or "async_collective_fusion_config" not in part.attributes:
            yield part, begins


def _collective(kind: str, instruction: Instruction, times: float, asynchronous: bool, mesh: Mesh, chip: Chip):
    groups = _groups(instruction.attributes, mesh.devices.size)
    group = np.asarray(groups[0])
    size = len(group) if kind != "collective-permute" else 2
    # A start's result holds its operands as well; the largest array is what was gathered, or reduced.
    largest = max((array.bytes for array in instruction.arrays), default=0.0)
    whole = sum(array.bytes for array in instruction.arrays) if not instruction.opcode.endswith("-start") else largest
    sent = _sent(kind, whole, size) * times
    speed = _bandwidth(chip, mesh.devices.reshape(-1)[group])
    return Collective(
        kind=kind,
        axes=_axes(group, mesh),
        network=ICI,
        count=times,
        bytes=sent,
        seconds=sent / speed,
        asynchronous=asynchronous,
        what=operation(instruction),
    )


def _sent(kind: str, whole: float, size: int) -> float:
    """Bytes that a device sends in a ring; whole: the result's bytes."""
    if size <= 1:
        return 0.0
    share = (size - 1) / size
    if kind == "all-reduce":
        return 2 * share * whole
    if kind == "reduce-scatter":
        return (size - 1) * whole
    return whole if kind == "collective-permute" else share * whole


def _between_slices(instruction: Instruction, times: float, chip: Chip) -> Collective:
    kind = re.search(r'_xla_megascale_transfer_type="([A-Z_]+)"', instruction.attributes)
    sent = instruction.arrays[0].bytes * times
    return Collective(
        kind=kind[1].lower().replace("_", "-") if kind else "send",
        axes="slices",
        network=DCN,
        count=times,
        bytes=sent,
        seconds=sent / chip.dcn,
        asynchronous=True,
        what=operation(instruction),
    )


def _bandwidth(chip: Chip, devices: Sequence) -> float:
    """Bytes/s that one device of a group sends: two links for every dimension of the torus that the group spans."""
    coordinates = np.array([getattr(device, "coords", (0,)) for device in devices])
    spanned = sum(len(set(column)) > 1 for column in coordinates.T)
    return chip.link * 2 * max(1, min(spanned, chip.links // 2))


def _axes(group: np.ndarray, mesh: Mesh) -> str:
    places = np.array(np.unravel_index(group, mesh.devices.shape))
    varying = [name for name, along in zip(mesh.axis_names, places, strict=True) if len(set(along.tolist())) > 1]
    return "+".join(varying) or "none"


def _groups(attributes: str, devices: int) -> list[list[int]]:
    """The groups of devices (numbers in the mesh, row by row) that exchange, in any of the forms that are printed."""
    for pattern, read in ((_EXPLICIT, _explicit), (_MESH, _of_mesh), (_IOTA, _iota), (_PAIRS, _explicit)):
        match = pattern.search(attributes)
        if match:
            return read(match)
    return [list(range(devices))]


def _explicit(match: re.Match) -> list[list[int]]:
    return [[int(n) for n in part.split(",") if n.strip()] for part in re.findall(r"\{([^{}]*)\}", match[1])]


def _iota(match: re.Match) -> list[list[int]]:
    shape, from_shape = _numbers(match[1]), _numbers(match[2])
    return _ordered(from_shape, match[3]).reshape(shape).tolist()


def _of_mesh(match: re.Match) -> list[list[int]]:
    axes = dict(re.findall(r"'?([\w.]+)'?=(\d+)", match[1]))
    sizes = {name: int(size) for name, size in axes.items()}
    order = _ordered(_numbers(match[2]), match[3]) if match[2] else np.arange(math.prod(sizes.values()))
    taken = re.findall(r"'([\w.]+)'", match[4])
    names = list(sizes)
    grid = order.reshape(list(sizes.values()))
    moved = np.moveaxis(grid, [names.index(name) for name in taken], range(-len(taken), 0))
    return moved.reshape(-1, math.prod(sizes[name] for name in taken)).tolist()


def _ordered(shape: list[int], permutation: str | None) -> np.ndarray:
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return (numbers.transpose(_numbers(permutation)) if permutation else numbers).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]
