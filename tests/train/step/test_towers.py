"""Frozen towers run over all row groups together, and give each what it would have had alone."""

import jax
import numpy as np
import pytest
from flax import nnx
from multidevice.tiny_step import geometry, row_groups, run_config

from virtue_jax.config import Numerics
from virtue_jax.models.virtue import Virtue
from virtue_jax.train.step import towers


@pytest.mark.slow
@pytest.mark.parametrize(("most_images", "most_patches"), [(4, 10_240), (2, 16)])
def test_each_group_gets_what_it_would_alone(monkeypatch, most_images, most_patches):
    monkeypatch.setattr(towers, "MOST_IMAGES", most_images)
    monkeypatch.setattr(towers, "MOST_PATCHES", most_patches)
    virtue = geometry()
    model = Virtue(virtue, numerics=Numerics(), rngs=nnx.Rngs(0))
    config = run_config()
    (first, text), (second, _) = (row_groups(config, virtue, seed) for seed in (0, 1))
    second = jax.tree.map(lambda x: x[:6], second)
    together = nnx.jit(lambda model, groups: towers.encode_towers(model, groups))(model, (first, text, second))
    assert together[1] == (None, None)
    for batch, outputs in ((first, together[0]), (second, together[2])):
        alone = nnx.jit(lambda model, batch: model.towers(batch))(model, batch)
        np.testing.assert_allclose(outputs.vision, alone.vision, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(outputs.fused, alone.fused, rtol=1e-4, atol=1e-5)


def test_parts_are_equal_and_as_few_as_the_most_allows():
    assert [towers._chunks(items, 4) for items in (1, 4, 6, 8, 32, 7)] == [1, 1, 2, 2, 8, 7]
