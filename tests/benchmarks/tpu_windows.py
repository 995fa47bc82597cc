"""SAM-2.1 b+'s windowed attention, block by block, compiled for a TPU with its kernel and as products.

cd tests && PYTHONPATH=.. python -m benchmarks.tpu_windows --topology v5p:4x4x4

Needs no TPU; what it prints are predictions (`virtue_jax/aot/roofline.py`).
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from virtue_jax.aot.hlo.program import read_program
from virtue_jax.aot.roofline import costs, program_cost
from virtue_jax.aot.topology import prepare_environment, topology_devices
from virtue_jax.chips import Chip, chip_of
from virtue_jax.ops.window_attention import window_attention
from virtue_jax.parallel.mesh import MeshConfig, make_mesh
from virtue_jax.published_models import published_geometry
from virtue_jax.train.cost.image_encoder import Block, trunk_blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5p:4x4x4")
    parser.add_argument("--images", type=int, default=4, help="on one chip at once")
    given = parser.parse_args()
    prepare_environment()
    devices, chip = topology_devices(given.topology), chip_of(given.topology)
    mesh = make_mesh(MeshConfig(), devices)
    blocks = {block._replace(path=""): None for block in trunk_blocks(published_geometry("2b").sam2)}
    print(f"{given.images} images on one chip of {given.topology}")
    print(f"{'block':<34}{'by':<10}{'roofline ms':>12}{'cycles ms':>11}{'GB':>7}{'TFLOP':>8}")
    for block in blocks:
        if not block.is_global:
            name = f"{block.side}x{block.side}, windows of {block.window}, {block.d_in} -> {block.d_out}"
            for backend, told in (("xla", "products"), ("splash", "kernel")):
                program = read_program(_compiled(block, backend, given.images, np.ravel(devices)[0]))
                _print(f"{name:<34}{told:<10}", program, mesh, chip)


def _compiled(block: Block, backend: str, images: int, device: jax.Device) -> str:
    """HLO of the block's attention behind its norm, in bfloat16."""

    def attend(x, *parameters):
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        normed = (centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype)
        asked = {"heads": block.heads, "window": block.window, "pooled": block.opens, "backend": backend}
        return window_attention(normed, parameters[:2], parameters[2:], **asked)

    C, D = block.d_in, block.d_out
    shapes = [(images, block.side, block.side, C), (C, 3 * D), (3 * D,), (D, D), (D,)]
    there = SingleDeviceSharding(device)
    given = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=there) for shape in shapes]
    return jax.jit(attend).lower(*given).compile().as_text()


def _print(head: str, program, mesh, chip: Chip) -> None:
    terms = program_cost(program, mesh, chip).terms
    moved = sum(cost.bytes for cost in costs(program, chip))
    times = f"{terms.roofline_seconds * 1e3:12.2f}{terms.cycles_seconds * 1e3:11.2f}"
    print(f"{head}{times}{moved / 1e9:7.2f}{terms.flops / 1e12:8.3f}", flush=True)


if __name__ == "__main__":
    main()
