"""FLOPs of the matrix products in an optimised program, and the bytes of HBM that an instruction touches."""

import functools
import math
import re

from virtue_jax.aot.hlo.program import HBM, Computation, Instruction, Program

_LABELS = re.compile(r"dim_labels=([0-9a-z?]+)_([0-9a-z?]+)->([0-9a-z?]+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_CONTRACTING = re.compile(r"lhs_contracting_dims=\{([0-9,]*)\}")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}
_FREE |= {"partition-id", "replica-id", "after-all", "iota", "async-start", "async-update"}


def product_flops(program: Program, instruction: Instruction, computation: Computation) -> float:
    """FLOPs of the products and convolutions of an instruction, those inside a fusion included."""
    if instruction.opcode == "fusion":
        inner = program.computations[instruction.called["calls"]]
        return sum(product_flops(program, part, inner) for part in inner.instructions.values())
    if instruction.opcode == "convolution":
        return _convolution(instruction, computation)
    if instruction.opcode == "dot":
        return _dot(instruction, computation)
    return 0.0


def _dot(instruction: Instruction, computation: Computation) -> float:
    left = computation.instructions[instruction.operands[0]].arrays[0].dims
    match = _CONTRACTING.search(instruction.attributes)
    contracted = math.prod(left[int(d)] for d in match[1].split(",") if d) if match else 1
    return 2.0 * math.prod(instruction.arrays[0].dims) * contracted


def _convolution(instruction: Instruction, computation: Computation) -> float:
    """Batched products come as convolutions with dilated inputs, whose holes are no arithmetic."""
    labels = _LABELS.search(instruction.attributes)
    inputs, kernel = (computation.instructions[name].arrays[0].dims for name in instruction.operands[:2])
    outputs = instruction.arrays[0].dims
    input_labels, kernel_labels, output_labels = labels.groups()
    window = _window(instruction.attributes)
    flops = 2.0 * outputs[output_labels.index("b")] * outputs[output_labels.index("f")]
    flops *= kernel[kernel_labels.index("i")]
    for i, label in enumerate(sorted(c for c in kernel_labels if c.isdigit())):
        sizes = (inputs[input_labels.index(label)], kernel[kernel_labels.index(label)])
        flops *= _pairs(*sizes, outputs[output_labels.index(label)], *(part[i] for part in window))
    return flops


def _window(attributes: str) -> tuple[list[int], ...]:
    """(stride, padding before, dilation of the input, of the kernel) of every spatial dimension."""
    match = _WINDOW.search(attributes)
    settings = dict(part.split("=", 1) for part in match[1].split()) if match else {}
    count = len(settings["size"].split("x")) if "size" in settings else 0

    def numbers(name: str, default: int) -> list[int]:
        return [int(n) for n in settings[name].split("x")] if name in settings else [default] * count

    before = [int(pad.split("_")[0]) for pad in settings["pad"].split("x")] if "pad" in settings else [0] * count
    return numbers("stride", 1), before, numbers("lhs_dilate", 1), numbers("rhs_dilate", 1)


@functools.cache
def _pairs(size: int, kernel: int, output: int, stride: int, before: int, dilated: int, kernel_dilated: int) -> int:
    """How many (output place, kernel place) pairs meet an element of the input, along one dimension."""
    count = 0
    for k in range(kernel):
        offset = k * kernel_dilated - before
        for o in range(output):
            place = o * stride + offset
            count += 0 <= place < (size - 1) * dilated + 1 and place % dilated == 0
    return count


def hbm_bytes(program: Program, instruction: Instruction, computation: Computation) -> float:
    """Bytes that an instruction reads from and writes to HBM.

    A slice of an array counts as what it takes, an update in place as what it writes: loops read one layer's weights,
    not all of them.
    """
    if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
        return 0.0
    if instruction.opcode in ("copy-start", "slice-start"):
        moved = instruction.arrays[:2]
        least = min(array.bytes for array in moved)
        return sum(least for array in moved if array.space == HBM)
    if instruction.opcode == "custom-call" and "AllocateBuffer" in instruction.attributes:
        return 0.0
    if instruction.opcode == "fusion":
        return _fusion_bytes(program, instruction, computation)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _result_bytes(computation, instruction.operands[1])
    if instruction.opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * sum(array.bytes for array in instruction.arrays if array.space == HBM)
    read = sum(_result_bytes(computation, name) for name in instruction.operands)
    return read + sum(array.bytes for array in instruction.arrays if array.space == HBM)


def _result_bytes(computation: Computation, name: str) -> float:
    instruction = computation.instructions.get(name)
    return 0.0 if instruction is None else sum(array.bytes for array in instruction.arrays if array.space == HBM)


def _fusion_bytes(program: Program, fusion: Instruction, computation: Computation) -> float:
    inner = program.computations[fusion.called["calls"]]
    read = 0.0
    for number, name in enumerate(fusion.operands):
        whole = _result_bytes(computation, name)
        read += min(whole, _read_of_parameter(program, inner, number, whole)) if whole else 0.0
    return read + _written(inner, inner.instructions[inner.root])


def _read_of_parameter(program: Program, inner: Computation, number: int, whole: float) -> float:
    for instruction in inner.instructions.values():
        if instruction.opcode == "parameter" and int(instruction.argument) == number:
            return _read_of(program, inner, instruction.name, whole)
    return 0.0


def _read_of(program: Program, inner: Computation, name: str, whole: float) -> float:
    """What a fusion reads of one operand: its slices, nothing of what it updates in place, else all."""
    total = 0.0
    for user in inner.instructions.values():
        if name not in user.operands:
            continue
        if user.opcode in ("dynamic-slice", "gather", "slice") and user.operands[0] == name:
            total += sum(array.bytes for array in user.arrays)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue
        elif user.opcode in ("bitcast", "copy"):
            total += _read_of(program, inner, user.name, whole)
        elif user.opcode == "fusion":
            nested = program.computations[user.called["calls"]]
            total += _read_of_parameter(program, nested, user.operands.index(name), whole)
        else:
            return whole
    return min(total, whole)


def _written(inner: Computation, root: Instruction) -> float:
    if root.opcode == "tuple":
        return sum(_written(inner, inner.instructions[name]) for name in root.operands)
    if root.opcode == "bitcast" and root.operands[0] in inner.instructions:
        return _written(inner, inner.instructions[root.operands[0]]) if root.arrays[0].space == HBM else 0.0
    if root.opcode == "dynamic-update-slice":
        return sum(array.bytes for array in inner.instructions[root.operands[1]].arrays) if _in_hbm(root) else 0.0
    return sum(array.bytes for array in root.arrays if array.space == HBM)


def _in_hbm(instruction: Instruction) -> bool:
    return any(array.space == HBM for array in instruction.arrays)
