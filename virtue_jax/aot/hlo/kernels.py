"""The Pallas attention kernels of a compiled program: which, how often, what they compute, and move at the least."""

import math
import re
from dataclasses import dataclass

from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import QKVLayout

from virtue_jax.aot.hlo.arithmetic import hbm_bytes
from virtue_jax.aot.hlo.program import Computation, Instruction, Program, operation
from virtue_jax.ops import window_kernel
from virtue_jax.ops.attention import CAUSAL_SCOPE

TARGET = "tpu_custom_call"
MATRIX_UNIT = 128  # heads are padded to whole matrix units; v6e's are 256 wide, and half idle at 128
# Products of queries with keys size: the forward pass, then what each of the backward kernels computes.
_PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}
_FUSED_BACKWARD = 5
_NAME = re.compile(r"splash_m[hq]a_(fwd|dkv|dq)")
_BLOCK = r'block_{}\\*": (\d+)'
_SAYS_FLOPS = re.compile(r'"cost_estimate":\{[^}]*"flops":"(\d+)"')


@dataclass(frozen=True)
class Kernel:
    """One attention kernel. flops: of all its runs, what a causal kernel skips left out, heads padded as the matrix
    units pad them. bytes: of all its runs, each operand read and each result written once. shape: (batch, query heads,
    queries, keys, head size) of splash attention, (batch, height, width, channels in and out) of
    the padded map of windows."""

    name: str
    count: float
    flops: float
    bytes: float
    shape: tuple[int, ...]
    causal: bool
    what: str


def is_kernel(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and f'custom_call_target="{TARGET}"' in instruction.attributes


def read_kernel(program: Program, instruction: Instruction, computation: Computation, times: float) -> Kernel:
    """The kernel that an instruction of `computation`, run so many times, calls.

    Raises:
    ValueError: a kernel that is neither splash attention nor says what it computes.
    """
    windows = instruction.name.startswith(window_kernel.NAME)
    name, shape, flops = (_of_windows if windows else _of_splash)(instruction, computation)
    moved = times * hbm_bytes(program, instruction, computation)
    what = operation(instruction)
    return Kernel(name, times, times * flops, moved, shape, CAUSAL_SCOPE in what, what)


def _of_windows(instruction: Instruction, computation: Computation) -> tuple[str, tuple[int, ...], float]:
    """(name, shape, FLOPs of one run)."""
    says = _SAYS_FLOPS.search(instruction.attributes)
    if says is None:
        raise ValueError(f"HLO: kernel {instruction.name} does not say its FLOPs")
    (x,) = computation.instructions[instruction.operands[0]].arrays
    return window_kernel.NAME, (*x.dims, instruction.arrays[0].dims[-1]), float(says[1])


def _of_splash(instruction: Instruction, computation: Computation) -> tuple[str, tuple[int, ...], float]:
    """(name, shape, FLOPs of one run)."""
    name = _NAME.match(instruction.name)
    arrays = [
        a for operand in instruction.operands for a in computation.instructions[operand].arrays if len(a.dims) >= 3
    ]
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
    flops = 2.0 * products * math.prod(batch) * count * queries * keys * padded * share
    return f"splash_{name[1]}", (math.prod(batch), count, queries, keys, size), flops


def _heads_last(instruction: Instruction, dims: tuple[int, ...], side: str) -> tuple[int, ...]:
    """Dimensions of queries or keys as (..., length, head size), whichever of the two comes last in memory."""
    layout = re.search(rf'{side}_layout\\*": (\d)', instruction.attributes)
    swapped = layout is not None and int(layout[1]) == QKVLayout.SEQ_MINOR
    return (*dims[:-2], dims[-1], dims[-2]) if swapped else dims


def _causal_share(instruction: Instruction, kind: str, queries: int, keys: int) -> float:
    """The share of (query block, key block) pairs with something to see in them."""
    suffix = {"fwd": "", "dkv": "_dkv", "dq": "_dq"}[kind]
    blocks = [re.search(_BLOCK.format(side + suffix), instruction.attributes) for side in ("q", "kv")]
    if not all(blocks):
        raise ValueError(f"HLO: kernel {instruction.name} does not say its block sizes")
    block_q, block_kv = (int(match[1]) for match in blocks)
    rows = range(0, queries, block_q)
    seen = sum(math.ceil(min(row + block_q, keys) / block_kv) for row in rows)
    return seen / (len(rows) * math.ceil(keys / block_kv))
