"""AdamW with linear warm-up and decay, over flat {path: array} parameters."""

import re
from dataclasses import dataclass

import jax.numpy as jnp
import optax


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (decoupled decay). `decay`: "linear" to zero at the last step, "cosine", or "constant".

    `weight_decay` applies to parameters whose path `decayed` matches whole; `clip_norm` bounds the global norm of the
    gradient (0 = no clipping).
    """

    learning_rate: float = 2e-5
    warmup_steps: int = 200
    decay: str = "linear"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decayed: str = r".*\.(kernel|lora_a|lora_b)"
    clip_norm: float = 1.0


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: up linearly from 0 over `warmup_steps`, then as `decay` says until `steps`."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if warmup >= steps:
        raise ValueError(f"warmup_steps {warmup} must be fewer than the {steps} training steps")
    rest = steps - warmup
    decays = {
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "constant": optax.constant_schedule(peak),
    }
    if config.decay not in decays:
        raise ValueError(f"decay {config.decay!r} is not one of {', '.join(decays)}")
    if warmup == 0:
        return decays[config.decay]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decays[config.decay]], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping, then AdamW; its state mirrors the flat parameter dict."""

    def decayed(params):
        return {path: re.fullmatch(config.decayed, path) is not None for path in params}

    adamw = optax.adamw(
        schedule(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decayed,
        mu_dtype=jnp.float32,
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw
