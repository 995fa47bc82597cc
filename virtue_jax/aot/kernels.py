"""The Pallas attention kernels of a compiled program: which, how often, and what they compute."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import QKVLayout

from virtue_jax.aot.hlo import Computation, Instruction, Program, operation
from virtue_jax.ops.attention import CAUSAL_SCOPE

TARGET = "tpu_custom_call"
MATRIX_UNIT = 128  # heads are padded to whole matrix units; v6e's are 256 wide, and half idle at 128
# Products of queries with keys size: the forward pass, then what each of the backward kernels computes.
_PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}
_FUSED_BACKWARD = 5
_NAME = re.compile(r"splash_m[hq]a_(fwd|dkv|dq)")
_BLOCK = r'block_{}\\*": (\d+)'


@dataclass(frozen=True)
class Kernel:
    """One attention kernel. flops: of all its runs, what a causal kernel skips left out, heads padded as the matrix
    units pad them. shape: (batch, query heads, queries, keys, head size)."""

    name: str
    count: float
    flops: float
    shape: tuple[int, ...]
    causal: bool
    what: str


def is_kernel(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and f'custom_call_target="{TARGET}"' in instruction.attributes


def find_kernels(program: Program) -> list[Kernel]:
    """Raises:
    ValueError: a kernel that is not splash attention: its arithmetic is not known here.
    """
    return list(_kernels(program))


def _kernels(program: Program) -> Iterator[Kernel]:
    for instruction, computation, times in program.executed():
        if is_kernel(instruction):
            yield _kernel(instruction, computation, times)


def _kernel(instruction: Instruction, computation: Computation, times: float) -> Kernel:
    name = _NAME.match(instruction.name)
    arrays = [a for one in instruction.operands for a in computation.instructions[one].arrays if len(a.dims) >= 3]
    heads = [a.dims for a in arrays if a.dtype in ("bf16", "f16", "f32")]
    if name is None or len(heads) < 3:
        raise ValueError(f"HLO: kernel {instruction.name} ({operation(instruction)}) is not splash attention")
    (*batch, count, queries, size), (*_, keys, _) = (
        _heads_last(instruction, dims, side) for dims, side in zip(heads, "qk", strict=False)
    )
    products = _PRODUCTS[name[1]]
    if name[1] == "dkv" and re.search(r'use_fused_bwd_kernel\\*": true', instruction.attributes):
        products = _FUSED_BACKWARD
    causal = CAUSAL_SCOPE in operation(instruction)
    share = _causal_share(instruction, name[1], queries, keys) if causal else 1.0
    padded = -(-size // MATRIX_UNIT) * MATRIX_UNIT
    each = 2.0 * products * math.prod(batch) * count * queries * keys * padded * share
    shape = (math.prod(batch), count, queries, keys, size)
    return Kernel(f"splash_{name[1]}", times, times * each, shape, causal, operation(instruction))


def _heads_last(instruction: Instruction, dims: tuple[int, ...], side: str) -> tuple[int, ...]:
    """Dimensions of queries or keys as (..., length, head size), whichever of the two comes last in memory."""
    layout = re.search(rf'{side}_layout\\*": (\d)', instruction.attributes)
    swapped = layout is not None and int(layout[1]) == QKVLayout.SEQ_MINOR
    return (*dims[:-2], dims[-1], dims[-2]) if swapped else dims


def _causal_share(instruction: Instruction, kind: str, queries: int, keys: int) -> float:
    """The share of (query block, key block) pairs with something to see in them."""
    suffix = {"fwd": "", "dkv": "_dkv", "dq": "_dq"}[kind]
    found = [re.search(_BLOCK.format(side + suffix), instruction.attributes) for side in ("q", "kv")]
    if not all(found):
        raise ValueError(f"HLO: kernel {instruction.name} does not say its block sizes")
    block_q, block_kv = (int(match[1]) for match in found)
    rows = range(0, queries, block_q)
    seen = sum(math.ceil(min(row + block_q, keys) / block_kv) for row in rows)
    return seen / (len(rows) * math.ceil(keys / block_kv))
