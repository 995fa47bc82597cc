import jax
import jax.numpy as jnp
import numpy as np
import pytest

from virtue_jax.parallel.mesh import data_mesh, replicated
from virtue_jax.train.checkpoints import RunCheckpoints, abstract_like
from virtue_jax.train.optimizer import OptimizerConfig, make_optimizer
from virtue_jax.train.step import initial_state

CONFIG = {"steps": 10, "data": {"path": "here"}}
OPTIMIZER = make_optimizer(OptimizerConfig(warmup_steps=1), steps=10)


def state_at(step):
    state = initial_state({"a.b": jnp.arange(3.0) + step, "c": jnp.ones((2, 2))}, OPTIMIZER)
    return state._replace(step=jnp.int32(step))


def restore(folder, config=CONFIG):
    with RunCheckpoints(folder, keep=2, config=config) as checkpoints:
        return checkpoints.restore(abstract_like(state_at(0), replicated(data_mesh())))


def test_an_empty_folder_restores_nothing(tmp_path):
    assert restore(tmp_path / "run") is None


def test_the_newest_checkpoint_comes_back_with_its_data_position(tmp_path):
    with RunCheckpoints(tmp_path, keep=2, config=CONFIG) as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(state_at(step), {"next_batch": step})
        checkpoints.save(state_at(6), {"next_batch": 99})  # already there: not written again
    state, position = restore(tmp_path)
    assert position == {"next_batch": 6} and int(state.step) == 6
    for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(state_at(6)), strict=True):
        np.testing.assert_array_equal(got, want)
    assert sorted(path.name for path in tmp_path.glob("step*")) == ["step_4", "step_6"]


def test_another_configuration_is_refused_by_its_differences(tmp_path):
    with RunCheckpoints(tmp_path, keep=2, config=CONFIG) as checkpoints:
        checkpoints.save(state_at(2), {"next_batch": 2})
    with pytest.raises(ValueError, match=r"data\.path: 'here' there, 'elsewhere' here"):
        restore(tmp_path, {"steps": 10, "data": {"path": "elsewhere"}})
