from types import SimpleNamespace

import jax
import pytest
from jax.sharding import PartitionSpec

from virtue_jax.config import AdapterConfig, HieraConfig, Numerics, Sam2Config, TextConfig, VirtueConfig, VisionConfig
from virtue_jax.models.parameters import abstract_virtue, parameters
from virtue_jax.parallel import shardings
from virtue_jax.parallel.mesh import MeshConfig, make_mesh
from virtue_jax.parallel.shardings import parameter_shardings, partition


@pytest.fixture(scope="module")
def shapes():
    hiera = HieraConfig(8, 1, (1, 1, 2, 1), (3,), (8, 4, 4, 4), (4, 4))
    text = TextConfig(64, 64, 128, 3, 8, 2, (1, 1, 2), 60, 61, 62)
    config = VirtueConfig(Sam2Config(hiera, d_model=16), VisionConfig(2, 64, 4, 64), text, AdapterConfig())
    return parameters(abstract_virtue(config, Numerics()))


def test_exactly_one_rule_matches_every_parameter(shapes):
    for path, x in shapes.items():
        assert len(partition(path)) <= len(x.shape), path


def test_the_big_kernels_are_split_and_only_they(shapes):
    split = {path for path in shapes if partition(path) != PartitionSpec()}
    assert {path.split(".")[0] for path in split} == {"text", "vision"}
    assert "text.layers.self_attn.q_proj.kernel" in split
    assert not any("lora" in path or "norm" in path or "embed_tokens" in path for path in split)


def test_an_unknown_parameter_is_an_error():
    with pytest.raises(ValueError, match=r"decoder\.kernel: 0 rows"):
        partition("decoder.kernel")


def test_two_rules_for_one_parameter_are_an_error(monkeypatch):
    monkeypatch.setattr(shardings, "RULES", (*shardings.RULES, (r"sam2\.neck\..*", PartitionSpec())))
    with pytest.raises(ValueError, match="2 rows"):
        partition("sam2.neck.convs.0.kernel")


def test_dimensions_that_do_not_divide_are_all_named(shapes, monkeypatch):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    monkeypatch.setattr(
        shardings, "NamedSharding", lambda _, spec: SimpleNamespace(spec=spec, mesh=SimpleNamespace(shape=SIZES))
    )
    with pytest.raises(ValueError, match="do not divide") as error:
        parameter_shardings(shapes, mesh)
    assert "text.layers.self_attn.q_proj.kernel (3, 64, 64): 64 is not a multiple of fsdp=5" in str(error.value)
    assert "vision.merger.fc1.kernel" in str(error.value)


SIZES = {"data": 1, "fsdp": 5, "tensor": 1}
