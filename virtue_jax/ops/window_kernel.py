"""Windowed attention for TPUs (Pallas): a row of windows stays on the chip from its tokens to its projected outputs.

Made of the compiler's products, windows of 16 to 196 tokens cost far more memory traffic than arithmetic: they are cut
out of the map, cut into heads that fill less than half of the lanes, and their float32 logits are written and read.

Letters: B images, H, W map, C channels in, D out, K lanes of all heads, L tokens of a group of windows.
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from virtue_jax.ops.splash import LANES
from virtue_jax.ops.xla_attention import MASKED

NAME = "window_attention"
SUBLANES = 16  # of a tile of bfloat16: a map's columns are cut at its multiples
GROUP = 128  # tokens: windows of fewer share a product, in which each sees its own
POOL = 2
VMEM = 14 * 2**20  # bytes that a grid step may plan with; v4 has 16 MiB


@dataclass(frozen=True)
class Cut:
    """How a row of windows is cut: into `groups` of `count` windows each; a group is `columns` wide, of which the first
    count * window are windows. pool: 2 where queries are pooled 2x2, else 1."""

    window: int
    count: int
    groups: int
    columns: int
    pool: int

    @property
    def used(self) -> int:
        return self.count * self.window

    @property
    def width(self) -> int:
        return self.groups * self.columns

    def labels(self, pool: int) -> np.ndarray:
        """int32[L / pool^2]: the window of every token of a group, -1 where there is none."""
        column, side = np.arange(self.columns // pool), self.window // pool
        return np.tile(np.where(column < self.count * side, column // side, -1), side).astype(np.int32)


def cut_of(width: int, window: int, pooled: bool) -> Cut:
    """Of a map of this width."""
    count = max(1, GROUP // window**2)
    columns = -(-count * window // SUBLANES) * SUBLANES
    return Cut(window, count, -(-width // (count * window)), columns, POOL if pooled else 1)


def chunk_of(size: int) -> tuple[int, int]:
    """(heads of this size that share lanes, how many lanes)."""
    return max(1, LANES // size), -(-size // LANES) * LANES


@dataclass(frozen=True)
class Plan:
    """cut: of the map; C, D: channels in and out; size: of a head; at_once: groups of a grid step; dtype: of x."""

    cut: Cut
    C: int
    D: int
    size: int
    at_once: int
    dtype: jnp.dtype

    @property
    def K(self) -> int:
        together, lanes = chunk_of(self.size)
        return -(-self.D // (self.size * together)) * lanes

    @property
    def blocks(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the input and the output, in one grid step."""
        side, width = self.cut.window, self.at_once * self.cut.columns
        pool = self.cut.pool
        return (1, side, width, self.C), (1, side // pool, width // pool, self.D)

    @property
    def scratch(self) -> list[tuple[tuple[int, ...], jnp.dtype]]:
        """Queries, keys and values, the result; and queries before they are pooled, a head's lanes at a time."""
        (_, *window, _), (_, *queries, _) = self.blocks
        # A group of pooled queries is half a tile of bfloat16 wide, which cannot be read by itself.
        narrow = self.dtype if self.cut.pool == 1 else jnp.dtype(jnp.float32)
        shapes = [((*queries, self.K), narrow), ((*window, 2 * self.K), self.dtype), ((*queries, self.K), narrow)]
        pooled = self.cut.pool > 1
        return [*shapes, ((*window, chunk_of(self.size)[1]), jnp.dtype(jnp.float32))] if pooled else shapes

    def flops(self, images: int, height: int) -> int:
        """What the matrix units compute for maps of this height, lengths and heads filled up to 128."""
        cut, K = self.cut, self.K
        tokens = images * -(-height // cut.window) * cut.window * cut.width
        places = tokens // cut.pool**2
        keys = -(-cut.window * cut.columns // LANES) * LANES
        attention = 2 * places * keys * chunk_of(self.size)[0] * K
        return 2 * (tokens * self.C * 3 * K + attention + places * K * self.D)

    @property
    def bytes(self) -> int:
        """Of a grid step: blocks twice, since the next step's come in meanwhile; values between products in float32."""
        (_, *window, _), (_, *queries, _) = self.blocks
        real = jnp.dtype(jnp.float32)
        blocks = 2 * sum(_tiled(shape, self.dtype) for shape in self.blocks)
        weights = _tiled((self.C, 3 * self.K), self.dtype) + _tiled((self.K, self.D), self.dtype)
        keys = self.cut.window * self.cut.columns
        logits = _tiled((keys // self.cut.pool**2, keys), real)
        values = max(_tiled((*window, chunk_of(self.size)[1]), real), 3 * logits, _tiled((*queries, self.D), real))
        return blocks + weights + sum(_tiled(*buffer) for buffer in self.scratch) + values


def _tiled(shape: tuple[int, ...], dtype: jnp.dtype) -> int:
    """Bytes of an array in whole tiles of 32 bits' 8 sublanes, and 128 lanes."""
    *lead, rows, lanes = shape
    tile = 32 // dtype.itemsize
    return math.prod(lead) * (-(-rows // tile) * tile) * (-(-lanes // LANES) * LANES) * dtype.itemsize


def plan(shape: tuple[int, ...], D: int, heads: int, window: int, pooled: bool, dtype) -> Plan | None:
    """Of a map of this shape: the fewest grid steps whose memory is there; None where one group is too much, or pooled
    heads take more lanes than the compiler reads every other row of."""
    if pooled and chunk_of(D // heads)[1] > LANES:
        return None
    cut = cut_of(shape[2], window, pooled)
    plans = (
        Plan(cut, shape[3], D, D // heads, groups, jnp.dtype(dtype))
        for groups in range(cut.groups, 0, -1)
        if cut.groups % groups == 0
    )
    return next((plan for plan in plans if plan.bytes <= VMEM), None)


def window_kernel(x_BHWC, qkv, qkv_bias, proj, proj_bias, *, heads: int, window: int, pooled: bool, interpret: bool):
    """`ops.window_attention.window_attention`, on one device, without gradient; where there is a `plan`."""
    H, W, D = *x_BHWC.shape[1:3], proj.shape[1]
    planned = plan(x_BHWC.shape, D, heads, window, pooled, x_BHWC.dtype)
    cut = planned.cut
    x = _spread_map(x_BHWC, cut)
    labels = jnp.asarray(cut.labels(cut.pool))[:, None], jnp.asarray(cut.labels(1))[None]
    whole = (*_spread_heads(qkv, qkv_bias, proj, heads), proj_bias.reshape(1, D), *labels)
    shape = (x.shape[0], x.shape[1] // cut.pool, cut.width // cut.pool, D)
    block_in, block_out = (pl.BlockSpec(block, lambda b, i, j: (b, i, j, 0)) for block in planned.blocks)
    y = pl.pallas_call(
        functools.partial(_row_of_windows, planned),
        grid=(x.shape[0], x.shape[1] // window, cut.groups // planned.at_once),
        in_specs=[block_in, *(pl.BlockSpec(array.shape, lambda b, i, j: (0, 0)) for array in whole)],
        out_specs=block_out,
        out_shape=jax.ShapeDtypeStruct(shape, x.dtype),
        scratch_shapes=[pltpu.VMEM(*array) for array in planned.scratch],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3),
        interpret=interpret,
        cost_estimate=_cost(x, whole, shape, planned),
        name=NAME,
    )(x, *whole)
    return _gather_map(y, cut, H // cut.pool, W // cut.pool)


def _cost(x, whole, out_shape, plan: Plan) -> pl.CostEstimate:
    together, lanes = chunk_of(plan.size)
    return pl.CostEstimate(
        flops=plan.flops(*x.shape[:2]),
        bytes_accessed=sum(array.nbytes for array in (x, *whole)) + math.prod(out_shape) * x.dtype.itemsize,
        transcendentals=math.prod(out_shape[:3]) * plan.cut.window * plan.cut.columns * together * plan.K // lanes,
    )


def _row_of_windows(plan, x_ref, qkv_ref, bias_ref, proj_ref, proj_bias_ref, row_ref, column_ref, y_ref, *scratch):
    """One grid step; scratch as planned."""
    q_ref, kv_ref, out_ref, *wide = scratch
    cut, dtype, K, lanes = plan.cut, plan.dtype, plan.K, chunk_of(plan.size)[1]
    x = x_ref[0].reshape(-1, plan.C)
    for start in range(0, 3 * K, lanes):  # few lanes at a time: as a whole, float32 would not fit
        y = _product(x, qkv_ref[:, start : start + lanes]) + bias_ref[:, start : start + lanes].astype(jnp.float32)
        y = y.reshape(*kv_ref.shape[:2], lanes)
        if start >= K:
            kv_ref[:, :, start - K : start - K + lanes] = y.astype(dtype)
        elif wide:
            wide[0][...] = y
            q_ref[:, :, start : start + lanes] = _pool(wide[0])
        else:
            q_ref[:, :, start : start + lanes] = y.astype(dtype)
    seen = row_ref[...] == column_ref[...] if cut.count > 1 or cut.used < cut.columns else None
    lax.fori_loop(0, plan.at_once, functools.partial(_group, q_ref, kv_ref, out_ref, seen, plan), None)
    out = out_ref[...].astype(dtype).reshape(-1, K)
    y = _product(out, proj_ref[...]) + proj_bias_ref[...].astype(jnp.float32)
    y_ref[0] = y.astype(dtype).reshape(y_ref.shape[1:])


def _pool(wide_ref):
    """[w, W, lanes] -> its maxima over 2x2 places."""
    window, width, lanes = wide_ref.shape
    columns = [wide_ref[:, pl.ds(first, width // POOL, stride=POOL), :] for first in range(POOL)]
    return jnp.maximum(*columns).reshape(window // POOL, POOL, width // POOL, lanes).max(1)


def _group(q_ref, kv_ref, out_ref, seen, plan: Plan, i, _):
    K, lanes, columns = plan.K, chunk_of(plan.size)[1], plan.cut.columns
    narrow = columns // plan.cut.pool
    queries = pl.ds(pl.multiple_of(i * narrow, narrow), narrow)
    keys = pl.ds(pl.multiple_of(i * columns, columns), columns)
    for start in range(0, K, lanes):
        q = q_ref[:, queries, pl.ds(start, lanes)]
        k, v = (kv_ref[:, keys, pl.ds(part + start, lanes)].reshape(-1, lanes) for part in (0, K))
        y = _heads_in_lanes(q.reshape(-1, lanes).astype(plan.dtype), k, v, seen, plan.size)
        out_ref[:, queries, pl.ds(start, lanes)] = y.reshape(q.shape).astype(out_ref.dtype)


def _heads_in_lanes(q, k, v, seen, size: int):
    """Attention of the heads that stand side by side in [L, lanes]; float32. One that is masked to its lanes takes the
    matrix unit as long as one cut out of them, and nothing is moved across lanes."""
    lane = lax.broadcasted_iota(jnp.int32, (1, q.shape[1]), 1)
    y = jnp.zeros(q.shape, jnp.float32)
    for head in range(chunk_of(size)[0]):
        own = (lane >= head * size) & (lane < (head + 1) * size)
        logits = _product(jnp.where(own, q, jnp.zeros_like(q)), k, contract=1) * size**-0.5
        logits = logits if seen is None else jnp.where(seen, logits, MASKED)
        weights = jnp.exp(logits - logits.max(-1, keepdims=True))
        weights = weights / weights.sum(-1, keepdims=True)
        y = jnp.where(own, _product(weights.astype(v.dtype), v), y)
    return y


def _product(x, y, contract: int = 0):
    """x[i, c] with y[c, j], or y[j, c]: float32[i, j]."""
    return lax.dot_general(x, y, (((1,), (contract,)), ((), ())), preferred_element_type=jnp.float32)


def _spread_map(x_BHWC, cut: Cut):
    """Whole rows of windows, and groups of whole tiles. Nothing moves where they are."""
    B, H, W, C = x_BHWC.shape
    x = jnp.pad(x_BHWC, ((0, 0), (0, -H % cut.window), (0, cut.groups * cut.used - W), (0, 0)))
    x = x.reshape(B, x.shape[1], cut.groups, cut.used, C)
    return jnp.pad(x, ((0, 0),) * 3 + ((0, cut.columns - cut.used), (0, 0))).reshape(B, x.shape[1], -1, C)


def _gather_map(y, cut: Cut, H: int, W: int):
    """The inverse of `_spread_map`, of a pooled map too."""
    B, rows, _, D = y.shape
    y = y.reshape(B, rows, cut.groups, cut.columns // cut.pool, D)[:, :, :, : cut.used // cut.pool]
    return y.reshape(B, rows, -1, D)[:, :H, :W]


def _spread_heads(qkv, bias, proj, heads: int):
    """Parameters with whole heads in whole lanes: [C, 3 K], [1, 3 K], [K, D]; zeros in the lanes between."""
    size = proj.shape[0] // heads
    together, lanes = chunk_of(size)
    chunks = -(-heads // together)

    def spread(x):
        """[n, heads, size] -> [n, K]"""
        x = jnp.pad(x, ((0, 0), (0, chunks * together - heads), (0, 0)))
        x = x.reshape(len(x), chunks, together * size)
        return jnp.pad(x, ((0, 0), (0, 0), (0, lanes - together * size))).reshape(len(x), -1)

    kernel = spread(qkv.reshape(-1, heads, size)).reshape(len(qkv), -1)
    return kernel, spread(bias.reshape(3, heads, size)).reshape(1, -1), spread(proj.T.reshape(-1, heads, size)).T
