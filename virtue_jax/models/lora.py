"""Low-rank adapters beside frozen linear layers, as PEFT has them: LoRA (arXiv 2106.09685), DoRA (arXiv 2402.09353)."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import LoRAParam
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from virtue_jax.config import AdapterConfig, Numerics
from virtue_jax.models.layers import LAST_SUM, Linear

_DRAWS = 2**16  # a dropout rate is a whole number of these


class AdaptedLinear(Linear):
    """A frozen linear layer with an adapter: kernel, bias as before, and lora_a[in, r], lora_b[r, out], magnitude[out].

    With W = kernel, s = alpha / r and n the column norm of W + s A B, held constant in the backward pass:

        LoRA:  y = x W + bias + s d(x) A B
        DoRA:  y = x W + bias + (magnitude / n - 1) d(x) W + (magnitude / n) s d(x) A B

    d is dropout with one mask per call, drawn for each row from a key of its own; it is the identity without keys or at
    rate 0, and DoRA is then (magnitude / n) x (W + s A B) + bias. That the frozen product d(x) W is dropped out too
    (and so computed a second time) under DoRA but not under LoRA is PEFT's behaviour, which the published adapters
    were trained with; with `numerics.dora_dropout` "branch" it is x W there as well.

    n depends on parameters alone: `hold_norms` computes it once for many calls.
    """

    def __init__(self, base: Linear, config: AdapterConfig, *, numerics: Numerics, rngs: nnx.Rngs):
        """A fresh adapter on `base` (stacked or not), whose parameters it takes over; it computes what `base` did.

        A ~ N(0, 1 / r^2), B = 0, magnitude = column norm of W: PEFT's init_lora_weights="gaussian".
        """
        self.kernel, self.bias, self.numerics, self.last = base.kernel, base.bias, numerics, base.last
        *stacked, d_in, d_out = base.kernel.shape
        dtype = jnp.dtype(numerics.params)
        a = jax.random.normal(rngs.params(), (*stacked, d_in, config.rank)) / config.rank
        self.lora_a = LoRAParam(a.astype(dtype))
        self.lora_b = LoRAParam(jnp.zeros((*stacked, config.rank, d_out), dtype))
        norm = _column_norm(base.kernel[...].astype(jnp.float32)) if config.use_dora else None
        self.magnitude = None if norm is None else LoRAParam(norm.astype(dtype))
        self.norm = nnx.data(None)  # a `ColumnNorm` while `hold_norms` holds
        self.scale, self.dropout = config.scale, config.dropout

    def __call__(self, x, keys=None):
        """x[R, ..., in] -> [R, ..., out]; keys: one dropout key per row, key[R], or None."""
        dtype = jnp.dtype(self.numerics.compute)
        x = x.astype(dtype)
        kernel = self.kernel[...].astype(dtype)
        base = x @ kernel
        dropped = x if keys is None or self.dropout == 0 else _drop(x, self.dropout, keys)
        delta = self.scale * ((dropped @ self.lora_a[...].astype(dtype)) @ self.lora_b[...].astype(dtype))
        if self.magnitude is None:
            y = base + delta
        else:
            ratio = _ratio(self, _adapted_norm(self) if self.norm is None else self.norm[...])
            whole = dropped is x or self.numerics.dora_dropout == "branch"
            dropped_base = base if whole else dropped @ kernel
            total = dropped_base + delta  # all that the magnitude's gradient needs
            total = checkpoint_name(total, LAST_SUM) if self.last else total
            rest = 0 if dropped_base is base else base - dropped_base
            # The ratio stays float32: a bfloat16 one near 1 would shift whole columns by up to 0.4 %.
            y = (rest + ratio * total).astype(dtype)
        return y if self.bias is None else y + self.bias[...].astype(dtype)


class ColumnNorm(nnx.Variable):
    """Column norms of an adapted layer, held for the time of one step; not a parameter."""


def _drop(x, rate: float, keys):
    # 16 random bits an element instead of the 32 of a uniform number: drawing them shows in a step's time.
    least = round(rate * _DRAWS)
    drawn = jax.vmap(lambda key: jax.random.bits(key, x.shape[1:], jnp.uint16))(keys)
    return jnp.where(drawn >= least, x * (_DRAWS / (_DRAWS - least)), 0).astype(x.dtype)


def _column_norm(kernel):
    return jnp.sqrt(jnp.square(kernel).sum(-2))


def _adapted_norm(layer: AdaptedLinear):
    """float32[..., out]: column norm of W + s A B, without a gradient."""
    return lax.stop_gradient(_column_norm(adapted_sum(layer)))


def _ratio(layer: AdaptedLinear, norm):
    """float32[..., out]: magnitude over norm; a column of zeros stays zero, not 0 / 0."""
    return layer.magnitude[...].astype(jnp.float32) / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny)


def hold_norms(module: nnx.Module) -> None:
    """Computes the column norms of all DoRA layers now, in place, so that calls until the next change of a parameter
    read them instead of the whole kernels. Stacked layers take one layer's memory at a time."""
    for layer in _linears(module).values():
        if isinstance(layer, AdaptedLinear) and layer.magnitude is not None:
            layer.norm = ColumnNorm(_by_layer(_adapted_norm, layer))


def _by_layer(function, layer: AdaptedLinear):
    """function(layer), one layer of a stack after another: a float32 copy of a whole stack would take gigabytes."""
    if layer.kernel.ndim == 2:
        return function(layer)
    graphdef, state = nnx.split(layer)
    return lax.map(lambda state_of_layer: function(nnx.merge(graphdef, state_of_layer)), state)


def adapted_sum(layer: AdaptedLinear):
    """float32[..., in, out]: W + s A B.

    It is formed, although its column norm could be had as W^2 + 2 s B (A^T W) + s^2 B^T (A^T A) B without: where an
    adapter cancels most of a column, that sum loses twice the digits (tests/models/test_lora.py). Both read all of
    W, and the product costs r / tokens of the layer's own.
    """
    a, b = (p[...].astype(jnp.float32) for p in (layer.lora_a, layer.lora_b))
    return layer.kernel[...].astype(jnp.float32) + layer.scale * jnp.matmul(a, b, precision="highest")


def merged_kernel(layer: AdaptedLinear):
    """[..., in, out] in the kernel's dtype: the kernel of the plain layer that computes what the adapted one does."""

    def merged(adapted: AdaptedLinear):
        total = adapted_sum(adapted)
        scaled = total if adapted.magnitude is None else total * _ratio(adapted, _column_norm(total))
        return scaled.astype(adapted.kernel.dtype)

    return _by_layer(merged, layer)


def adapt(module: nnx.Module, config: AdapterConfig, *, numerics: Numerics, rngs: nnx.Rngs) -> list[str]:
    """Puts a fresh adapter on every linear layer of `module` whose name is in `config.targets`, in place.

    Works on stacked layers and under `nnx.eval_shape`. Adapter parameters are `LoRAParam`s beside the kernel.

    Returns:
        The dotted paths adapted, sorted.

    Raises:
        ValueError: a target that names no linear layer (PEFT drops such a one without a word), with the names that
            exist; a rank or dropout out of range; a layer that is adapted already.
    """
    if config.rank < 1 or not 0 <= config.dropout < 1:
        raise ValueError(f"adapter: rank {config.rank} must be at least 1 and dropout {config.dropout} in [0, 1)")
    linears = _linears(module)
    names = sorted({path[-1] for path in linears})
    unmatched = [target for target in config.targets if target not in names]
    if unmatched or not config.targets:
        raise ValueError(f"adapter targets {unmatched} match no linear layer; there are: {', '.join(names)}")
    chosen = sorted(path for path in linears if path[-1] in config.targets)
    already = [_dotted(path) for path in chosen if isinstance(linears[path], AdaptedLinear)]
    if already:
        raise ValueError(f"adapted already: {', '.join(already)}; merge that adapter first")
    for path in chosen:
        _replace(module, path, AdaptedLinear(linears[path], config, numerics=numerics, rngs=rngs))
    return [_dotted(path) for path in chosen]


def merge_adapter(module: nnx.Module) -> dict[str, AdaptedLinear]:
    """Turns every adapted layer into a plain `Linear` with the merged kernel, in place.

    The module then has the parameters of one that never had an adapter, and computes what it did without dropout.

    Returns:
        {dotted path: the adapted layer that stood there}, for `unmerge_adapter`; drop it to free the base kernels.

    Raises:
        ValueError: nothing is adapted.
    """
    adapted = {path: layer for path, layer in _linears(module).items() if isinstance(layer, AdaptedLinear)}
    if not adapted:
        raise ValueError("merge_adapter: the model has no adapted layer")
    for path, layer in adapted.items():
        _replace(module, path, _plain(layer))
    return {_dotted(path): layer for path, layer in adapted.items()}


def unmerge_adapter(module: nnx.Module, adapted: dict[str, AdaptedLinear]) -> None:
    """Undoes `merge_adapter`, exact to the bit: the layers that it returned are put back, in place.

    PEFT subtracts the adapter from the merged weight instead, which leaves rounding behind (in bfloat16, of the
    size of the adapter itself). Whatever was done to the merged kernels in between is lost here.

    Raises:
        ValueError: a path that is not a plain linear layer of that shape in `module`.
    """
    linears = {_dotted(path): (path, layer) for path, layer in _linears(module).items()}
    for name, layer in adapted.items():
        path, present = linears.get(name, (None, None))
        if type(present) is not Linear or present.kernel.shape != layer.kernel.shape:
            actual = "nothing" if present is None else f"{type(present).__name__} {present.kernel.shape}"
            raise ValueError(f"unmerge_adapter: {name} is {actual}, expected a merged Linear {layer.kernel.shape}")
        _replace(module, path, layer)


def _plain(layer: AdaptedLinear) -> Linear:
    """The merged layer; made abstract first, so that no kernel is initialised only to be thrown away."""
    d_in, d_out = layer.kernel.shape[-2:]
    options = {"numerics": layer.numerics, "use_bias": layer.bias is not None, "last": layer.last}
    plain = nnx.eval_shape(lambda: Linear(d_in, d_out, rngs=nnx.Rngs(0), **options))
    plain.kernel = nnx.Param(merged_kernel(layer))
    plain.bias = layer.bias
    return plain


def _linears(module: nnx.Module) -> dict[tuple, Linear]:
    return {path: m for path, m in nnx.iter_modules(module) if path and isinstance(m, Linear)}


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))


def _replace(module: nnx.Module, path: tuple, new: nnx.Module) -> None:
    *parents, name = path
    for part in parents:
        module = module[part] if isinstance(part, int) else getattr(module, part)
    if isinstance(name, int):
        module[name] = new
    else:
        setattr(module, name, new)
