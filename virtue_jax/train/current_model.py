"""A run's model as it is at a step, for embedding on the devices that train it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax

from virtue_jax.config import VirtueConfig
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.embedding.embedder import Embedder
from virtue_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from virtue_jax.train.step.setup import TrainSetup
from virtue_jax.train.step.stages import LOG_TEMPERATURE


class CurrentModel:
    """One embedder on this process's own devices, compiled once, to which every evaluation passes the weights of its
    step. What the mesh splits is made whole on every device meanwhile; what it does not split is not copied."""

    def __init__(self, run: TrainSetup, virtue: VirtueConfig, tokenizer: Tokenizer, frozen: Mapping[str, jax.Array]):
        self._frozen = frozen
        self._local = make_mesh(MeshConfig(), jax.local_devices())
        self._whole = jax.jit(lambda split: split, out_shardings=replicated(run.mesh))
        self._embedder = Embedder(virtue, run.model, tokenizer)
        self.encoder = self._embedder.encoder

    @contextmanager
    def embedder(self, trainable: Mapping[str, jax.Array]) -> Iterator[Embedder]:
        """The embedder with these weights; all processes call it. After the block it holds none, so that the next step
        can give its state away."""
        params = {path: x for path, x in {**self._frozen, **trainable}.items() if path != LOG_TEMPERATURE}
        params |= self._whole({path: x for path, x in params.items() if not x.is_fully_replicated})
        self._embedder.use({path: self._here(x) for path, x in params.items()})
        try:
            yield self._embedder
        finally:
            self._embedder.use({})

    def _here(self, x: jax.Array) -> jax.Array:
        """A replicated array as one of this process's devices alone, in the same memory."""
        parts = {shard.device: shard.data for shard in x.addressable_shards}
        order = [parts[device] for device in self._local.devices.flat]
        return jax.make_array_from_single_device_arrays(x.shape, replicated(self._local), order)
