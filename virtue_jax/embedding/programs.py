"""The two compiled programs of an embedder: `look` runs the image towers over the images of rows, `read` the rest.

Both are compiled once for each shape of rows, and do at run time no more than a row's contents ask for: images that are
not there are not run, and on a CPU a row is as long as the shortest of a few lengths that holds what is in it.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from virtue_jax.batch import Batch
from virtue_jax.models.parameters import bind, parameters
from virtue_jax.models.virtue import TowerOutputs, Virtue
from virtue_jax.parallel.mesh import ROWS, platform_of, replicated, rows

# What `look` reads of a batch and `read` does not; it tells by `prompt_image` and `prompt_slot` which images are there.
PIXELS = ("patches", "patch_yx", "patch_segments", "sam_images")
LENGTHS = 4  # of a row on a CPU, in equal steps; elsewhere one: there each loop is half a minute of compilation


class SeenImages(NamedTuple):
    """What both towers say of the images of R rows; None where the rows have no images or no segmentation.

    vision: [R, V * P/4, hidden] vision tokens. maps: [R, I, h, w, D], SAM-2's map of each image that prompts are on.
    """

    vision: jax.Array | None
    maps: jax.Array | None


class Programs:
    """A model on the devices of a mesh: weights on all of them, rows split over them. An abstract model has to be given
    its weights before it runs (`use`)."""

    def __init__(self, model: Virtue, mesh: Mesh):
        self.mesh = mesh
        weights = parameters(model)
        abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in weights.values())
        self.use({} if abstract else weights)
        lengths = LENGTHS if platform_of(mesh) == "cpu" else 1
        options = _compiler_options(model.text.numerics.compute, platform_of(mesh))

        def compiled(stage: Callable):
            by_rows, whole = PartitionSpec(ROWS), PartitionSpec()
            run = functools.partial(stage, model, lengths)
            # Mapped by hand: each device takes its own branches.
            mapped = jax.shard_map(
                run, mesh=mesh, in_specs=(whole, by_rows, by_rows), out_specs=by_rows, check_vma=False
            )
            return jax.jit(mapped, compiler_options=options)

        self._look, self._read = compiled(_look), compiled(_read)

    def use(self, params: Mapping[str, jax.Array]) -> None:
        """Runs with these weights from now on."""
        self._params = jax.device_put(dict(params), replicated(self.mesh))

    def look(self, batch: Batch) -> SeenImages:
        """Dispatched and not waited for, as `read`."""
        if batch.patches is None:
            return SeenImages(None, None)
        return self._look(self._params, self._put(batch), None)

    def read(self, batch: Batch, seen: SeenImages) -> jax.Array:
        """float32[R, K, hidden]: the embedding of every example, of unit length; undefined where there is none."""
        return self._read(self._params, self._put(batch._replace(**dict.fromkeys(PIXELS))), seen)

    def _put(self, batch: Batch) -> Batch:
        return jax.device_put(batch, rows(self.mesh))


def _look(model: Virtue, lengths: int, params, batch: Batch, _) -> SeenImages:
    model = bind(model, params)
    vision = lax.map(functools.partial(_vision_tokens, model, lengths), _joined(_vision_inputs(batch)))
    vision = vision.reshape(len(batch.tokens), -1, vision.shape[-1])
    if batch.sam_images is None:
        return SeenImages(vision, None)
    maps = lax.map(functools.partial(_image_map, model), _joined((batch.sam_images, _images_there(batch))))
    return SeenImages(vision, maps.reshape(*batch.sam_images.shape[:2], *maps.shape[1:]))


def _read(model: Virtue, lengths: int, params, batch: Batch, seen: SeenImages):
    model = bind(model, params)
    fused = None if seen.maps is None else model.fuse_prompts(batch, _joined(seen.maps))
    towers = TowerOutputs(seen.vision, fused)
    used = (batch.segments > 0).sum(1).max()
    run = functools.partial(_embed_cut, model, batch, towers)
    return _shortest(_lengths(batch.tokens.shape[1], lengths), used, run)


def _vision_inputs(batch: Batch):
    return batch.patches, batch.patch_yx, batch.patch_segments


def _vision_tokens(model: Virtue, lengths: int, row):
    """[P/4, hidden] of one vision row."""
    patches, _, segments = row
    whole = jax.eval_shape(model.vision_rows, *(x[None] for x in row))

    def run(length: int):
        if not length:
            return jnp.zeros(whole.shape[1:], whole.dtype)
        tokens = model.vision_rows(*(x[None, :length] for x in row))[0]
        return jnp.pad(tokens, ((0, whole.shape[1] - len(tokens)), (0, 0)))

    return _shortest((0, *_lengths(len(patches), lengths)), (segments > 0).sum(), run)


def _image_map(model: Virtue, image):
    """[h, w, D] of one image, zeros where there is none."""

    def encode(pixels):
        return model.image_maps(pixels[None])[0]

    pixels, there = image
    shape = jax.eval_shape(encode, pixels)
    return lax.cond(there, encode, lambda _: jnp.zeros(shape.shape, shape.dtype), pixels)


def _images_there(batch: Batch):
    """bool[R, I]: images stand in the order in which the row's prompts first use them."""
    images = jnp.where((batch.prompt_slot >= 0).any(1), batch.prompt_image.max(1) + 1, 0)
    return jnp.arange(batch.sam_images.shape[1]) < images[:, None]


def _embed_cut(model: Virtue, batch: Batch, towers: TowerOutputs, length: int):
    """`Virtue.embed` of the first `length` slots of every row."""
    by_slot = ("tokens", "segments", "positions", "vision_slot", "prompt_slot")
    present = {name: x for name in by_slot if (x := getattr(batch, name)) is not None}
    return model.embed(batch._replace(**{name: x[..., :length] for name, x in present.items()}), towers)


def _lengths(whole: int, count: int) -> tuple[int, ...]:
    """`count` lengths in equal steps, the last of them `whole`."""
    return tuple(whole * step // count for step in range(1, count + 1))


def _shortest(lengths: Sequence[int], used, run: Callable):
    """run(length) of the shortest of `lengths` (ascending) that holds `used` places."""
    if len(lengths) == 1:
        return run(lengths[0])
    choice = jnp.searchsorted(jnp.array(lengths), used)
    return lax.switch(choice, [functools.partial(run, length) for length in lengths])


def _joined(tree):
    """The two leading axes as one, in every leaf."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree)


def _compiler_options(compute: str, platform: str) -> dict[str, str] | None:
    """On a CPU, XLA computes bfloat16 in float32, and its loop-invariant code motion would convert the weights of all
    layers before the loop over them (8 GB at the 2B size) instead of one layer's inside it."""
    if compute == "float32" or platform != "cpu":
        return None
    return {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
