import jax.numpy as jnp
import numpy as np
import optax
import pytest

from virtue_jax.train.step.optimizer import OptimizerConfig, make_optimizer, schedule


def test_the_rate_rises_linearly_then_falls_to_zero_at_the_last_step():
    rate = schedule(OptimizerConfig(learning_rate=1e-3, warmup_steps=10), steps=30)
    np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(20), rate(30)], [0, 5e-4, 1e-3, 5e-4, 0], atol=1e-9)


@pytest.mark.parametrize(("decay", "halfway"), [("cosine", 5e-4), ("constant", 1e-3)])
def test_other_decays(decay, halfway):
    rate = schedule(OptimizerConfig(learning_rate=1e-3, warmup_steps=0, decay=decay), steps=20)
    np.testing.assert_allclose(rate(10), halfway, rtol=1e-6)


def test_impossible_schedules_are_refused():
    with pytest.raises(ValueError, match="warmup_steps 200"):
        schedule(OptimizerConfig(), steps=100)
    with pytest.raises(ValueError, match="'step' is not one of linear, cosine, constant"):
        schedule(OptimizerConfig(decay="step"), steps=1000)


def test_weight_decay_falls_on_kernels_and_adapters_only():
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, decay="constant", weight_decay=0.5, clip_norm=0.0)
    optimizer = make_optimizer(config, steps=10)
    params = {"a.kernel": jnp.ones(2), "a.lora_b": jnp.ones(2), "a.bias": jnp.ones(2), "n.scale": jnp.ones(2)}
    still = {path: jnp.zeros(2) for path in params}
    updates, _ = optimizer.update(still, optimizer.init(params), params)
    after = optax.apply_updates(params, updates)
    assert {path: float(x[0]) for path, x in after.items()} == pytest.approx(
        {"a.kernel": 0.95, "a.lora_b": 0.95, "a.bias": 1.0, "n.scale": 1.0}
    )


def test_clipping_bounds_the_global_norm():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=0, decay="constant", b1=0.0, b2=0.0, eps=1e9)
    optimizer = make_optimizer(config, steps=10)  # so large an eps makes the update proportional to the gradient
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    gradient = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["b"][0] * -1e9, 0.8, rtol=1e-4)
