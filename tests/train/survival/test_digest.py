import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from virtue_jax.train.survival.digest import digest, tree_digest


def arrays():
    rng = np.random.default_rng(0)
    return {
        "a.kernel": jnp.asarray(rng.standard_normal((8, 6)), jnp.float32),
        "a.bias": jnp.asarray(rng.standard_normal(6), jnp.bfloat16),
        "b.scale": jnp.ones(6, jnp.bfloat16),
        "c.count": jnp.int32(7),
        "c.flags": jnp.array([True, False, True]),
    }


def changes():
    a = arrays()
    k = a["a.kernel"]
    yield "one bit", a | {"a.kernel": k.at[3, 4].set(np.nextafter(np.float32(k[3, 4]), np.float32(9)))}
    yield "two rows changed places", a | {"a.kernel": k[jnp.array([1, 0, 2, 3, 4, 5, 6, 7])]}
    yield "two equal-sized parameters changed places", a | {"a.bias": a["b.scale"], "b.scale": a["a.bias"]}
    yield "another shape", a | {"a.kernel": k.reshape(6, 8)}
    yield "another dtype", a | {"b.scale": jnp.ones(6, jnp.float32)}
    yield "another path", {("b.kernel" if p == "a.kernel" else p): x for p, x in a.items()}
    yield "zeros of the other sign", a | {"b.scale": -a["b.scale"]}
    yield "one flag", a | {"c.flags": jnp.array([True, True, True])}


def test_everything_that_differs_changes_the_digest():
    found = {"as it is": digest(arrays())} | {name: digest(changed) for name, changed in changes()}
    assert len(set(found.values())) == len(found)


def test_the_same_values_give_the_same_digest_on_every_mesh():
    devices = np.asarray(jax.devices())
    for shape in {(devices.size, 1), (1, devices.size)}:
        mesh = Mesh(devices.reshape(shape), ("x", "y"))
        for spec in (PartitionSpec(), PartitionSpec("x"), PartitionSpec("y")):
            moved = arrays()
            moved["a.kernel"] = jax.device_put(moved["a.kernel"], NamedSharding(mesh, spec))
            assert digest(moved) == digest(arrays())


def test_the_digest_of_known_values_stays_what_it_was():
    """Checkpoints name it, so it must not change between versions."""
    known = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(3, np.int32)}
    assert digest(jax.device_put(known)) == KNOWN


KNOWN = "20323e4a74388f8091598df8d89a7b30"


def test_trees_are_named_by_their_key_paths():
    assert tree_digest({"a": (jnp.ones(2), jnp.zeros(2))}) != tree_digest({"a": (jnp.zeros(2), jnp.ones(2))})


def test_wide_values_are_refused():
    with jax.enable_x64(True), pytest.raises(ValueError, match=r"\['a'\] have values of more than 4 bytes"):
        digest({"a": jnp.zeros(2, jnp.float64)})
