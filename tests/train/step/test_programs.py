import threading

import jax
import jax.numpy as jnp
import numpy as np

from virtue_jax.train.step.programs import Compilations


def test_what_this_thread_compiles_is_counted_and_named():
    counted = Compilations()
    try:

        @jax.jit
        def doubled(x):
            return 2 * x

        x, y = (jax.device_put(np.zeros(n, np.float32)) for n in (3, 4))
        doubled(x), doubled(x)
        assert counted.count == 1 and "doubled" in counted.names[0]
        doubled(y)  # another shape
        assert counted.count == 2
        other = threading.Thread(target=lambda: jax.jit(jnp.sin)(x))  # as checkpoints are written
        other.start()
        other.join()
        assert counted.count == 2
    finally:
        counted.close()
    doubled(jax.device_put(np.zeros(5, np.float32)))
    assert counted.count == 2
