import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))

import survival_run

from virtue_jax.config import Numerics, from_dict
from virtue_jax.parallel.mesh import MeshConfig, make_mesh
from virtue_jax.train.cost.fitting import _least_memory, _without_memory, fitted_setup
from virtue_jax.train.step.config import TrainConfig

pytestmark = pytest.mark.slow


@pytest.fixture
def fitted():
    """`fitted(memory_gib)`: (configuration with nothing left open, lines said) of the survival run, remat "auto"."""
    config = from_dict(TrainConfig, survival_run.get_config().to_dict())

    def fit(memory_gib: float):
        lines = []
        given = dataclasses.replace(config, memory_gib=memory_gib, numerics=Numerics(remat="auto"))
        made, run = fitted_setup(given, config.model.scratch, make_mesh(MeshConfig()), lines.append)
        assert [batch.tokens.shape[0] for batch in run.groups] == [8, 8]
        return made, lines

    return fit


def test_where_memory_is_unknown_nothing_is_chosen(fitted):
    made, lines = fitted(0.0)
    assert made.numerics.remat == "auto" and "cpu devices do not say how much memory" in lines[0]
    assert {group.micro_batches for group in made.data.rows.values()} == {0}


def test_the_process_with_the_least_memory_decides_for_all(monkeypatch):
    monkeypatch.setattr("virtue_jax.train.cost.fitting.gather_bytes", lambda mine: [b"9000", mine, b"5000"])
    assert _least_memory(make_mesh(MeshConfig())) == 5000


def test_accelerators_without_a_known_memory_are_refused():
    with pytest.raises(ValueError, match=r"set config\.memory_gib"):
        _without_memory("axelerator", print)


def test_little_memory_is_met_by_micro_batches_and_the_choice_is_told(fitted):
    roomy, _ = fitted(1.0)
    assert {group.micro_batches for group in roomy.data.rows.values()} == {1}
    tight, (line,) = fitted(0.007)
    assert max(group.micro_batches for group in tight.data.rows.values()) > 1
    assert "micro-batches: " in line and " of 0.01 GiB per device" in line


def test_what_does_not_fit_is_refused(fitted):
    with pytest.raises(ValueError, match="a step needs an estimated"):
        fitted(0.0001)
