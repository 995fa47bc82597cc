"""What is read of a program's memory against what the TPU compiler accepts and refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from virtue_jax.aot.topology import prepare_environment, topology_devices
from virtue_jax.chips import CHIPS
from virtue_jax.train.step.program_memory import program_memory

LAYERS, WIDTH, INNER = 28, 1024, 4096


def gradients(weights, *inputs):
    """Of layers over several inputs one after another, which keep their results for the way back."""

    def layer(x, w):
        return jnp.tanh(x @ w) @ w.T + x, None

    def loss(weights):
        return jnp.prod(jnp.stack([jax.lax.scan(layer, x, weights)[0].sum() for x in inputs]))

    return jax.grad(loss)(weights)


def compiled(rows: int):
    prepare_environment()
    device = SingleDeviceSharding(np.ravel(topology_devices("v5e:2x2"))[0])
    shapes = ((LAYERS, WIDTH, INNER), (rows, WIDTH), (rows // 4, WIDTH))
    given = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=device) for shape in shapes]
    return jax.jit(gradients).lower(*given).compile()


@pytest.mark.slow
def test_what_the_compiler_accepts_fits_and_what_it_refuses_is_a_little_more():
    size = CHIPS["v5e"].hbm
    memory = program_memory(compiled(rows=23552))
    assert 0.95 * size < memory.peak <= size
    # What one row more takes, all layers' results, tells how many more do not fit.
    each = LAYERS * (WIDTH + 2 * INNER) * 2 * 5 / 4
    more = int((size - memory.peak) / each) // 256 * 256 + 768
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        compiled(rows=23552 + more)
