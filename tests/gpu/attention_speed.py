"""Attention backends timed against each other on this machine's GPU: forward, and forward with backward.

    PYTHONPATH=tests python -m gpu.attention_speed --out FILE.json [--tiny]

Packed rows hold examples of equal length. cuDNN, which knows no segments, computes the same rows as if each were one
example: what it does is more where a row holds several.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from virtue_jax.ops.attention import BACKENDS

REPEATS = 20


class Case(NamedTuple):
    """Rows of `length`, in each `examples` of equal length."""

    name: str
    rows: int
    length: int
    heads: int
    key_heads: int
    size: int
    causal: bool
    examples: int


CASES = (
    Case("text 2B, one example", 4, 2560, 12, 2, 128, True, 1),
    Case("text 2B, 20 examples", 4, 2560, 12, 2, 128, True, 20),
    Case("text 7B, 20 examples", 4, 2560, 28, 4, 128, True, 20),
    Case("vision, one image", 4, 5120, 16, 16, 80, False, 1),
    Case("vision, four images", 4, 5120, 16, 16, 80, False, 4),
    Case("SAM-2, a global block", 4, 4096, 8, 8, 56, False, 1),
)
TINY = (Case("tiny", 1, 64, 2, 1, 16, True, 2),)


def measure(case: Case, backend: str, interpret: bool) -> dict[str, float | str]:
    """Milliseconds, and TFLOP/s of what the examples need; or why the backend does not run."""
    q, k, v, segments = _inputs(case)
    function = _function(case, backend, interpret)

    def loss(q, k, v):
        return function(q, k, v, segments).astype(jnp.float32).sum()

    need = 4.0 * case.rows * case.heads * case.size * case.length**2 / case.examples * (0.5 if case.causal else 1.0)
    try:
        forward = _milliseconds(jax.jit(lambda q, k, v: function(q, k, v, segments)), q, k, v)
        both = _milliseconds(jax.jit(jax.grad(loss, (0, 1, 2))), q, k, v)
    except Exception as error:  # a backend that is not there: what it says is the result
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    rates = {"forward_tflops": need / forward / 1e9, "both_tflops": 3 * need / both / 1e9}
    return {"forward_ms": forward, "both_ms": both} | rates


def _inputs(case: Case):
    rng, dtype = np.random.default_rng(0), jnp.bfloat16
    shapes = [(case.rows, case.length, heads, case.size) for heads in (case.heads, case.key_heads, case.key_heads)]
    ids = np.repeat(np.arange(1, case.examples + 1), -(-case.length // case.examples))[: case.length]
    arrays = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
    return *arrays, jnp.asarray(np.tile(ids, (case.rows, 1)), jnp.int32)


def _function(case: Case, backend: str, interpret: bool) -> Callable:
    if backend == "cudnn":
        attend = functools.partial(jax.nn.dot_product_attention, is_causal=case.causal, implementation="cudnn")
        return lambda q, k, v, segments: attend(q, k, v)
    run = BACKENDS[backend]
    run = functools.partial(run, interpret=True) if backend == "triton" and interpret else run
    return lambda q, k, v, s: run(q, k, v, case.size**-0.5, case.causal, s, s)


def _milliseconds(function: Callable, *arguments) -> float:
    """The median of `REPEATS` calls after two."""
    seconds = []
    for _ in range(REPEATS + 2):
        begin = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - begin)
    return 1e3 * float(np.median(seconds[2:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="one small case, kernels emulated")
    arguments = parser.parse_args()
    found = {
        case.name: {backend: measure(case, backend, arguments.tiny) for backend in ("xla", "triton", "cudnn")}
        for case in (TINY if arguments.tiny else CASES)
    }
    device = jax.devices()[0]
    arguments.out.write_text(json.dumps({"device": device.device_kind, "jax": jax.__version__, "cases": found}))


if __name__ == "__main__":
    main()
