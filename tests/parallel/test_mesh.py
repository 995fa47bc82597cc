from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from virtue_jax.batch import Batch
from virtue_jax.parallel.mesh import MeshConfig, local_streams, make_mesh, put_rows, row_parts, row_shards


def mesh_of(shape: tuple[int, int, int], processes: list[int]):
    """A mesh (data, fsdp, tensor) whose i-th device belongs to process `processes[i]`; this one is number 0."""
    devices = np.array([SimpleNamespace(process_index=p) for p in processes], object).reshape(shape)
    return SimpleNamespace(devices=devices, shape=dict(zip(("data", "fsdp", "tensor"), shape, strict=True)))


def test_the_mesh_takes_the_devices_that_there_are():
    mesh = make_mesh(MeshConfig())
    assert dict(mesh.shape) == {"data": jax.device_count(), "fsdp": 1, "tensor": 1}
    assert row_shards(mesh) == jax.device_count()


@pytest.mark.parametrize("config", [MeshConfig(data=3), MeshConfig(fsdp=2), MeshConfig(slices=2)])
def test_a_mesh_that_does_not_fit_the_devices_is_an_error(config):
    with pytest.raises(ValueError, match="does not fit 1 devices"):
        make_mesh(config, jax.devices()[:1])


@pytest.mark.parametrize("sizes", [{"fsdp": 0}, {"data": 0}, {"tensor": -1}])
def test_impossible_sizes_are_refused_when_made(sizes):
    with pytest.raises(ValueError, match="expected sizes of at least 1"):
        MeshConfig(**sizes)


@pytest.mark.parametrize(
    ("shape", "processes", "streams", "expected"),
    [
        ((4, 1, 1), [0, 0, 1, 1], 4, (0, 1)),
        ((4, 1, 1), [1, 1, 0, 0], 4, (2, 3)),
        ((4, 1, 1), [0, 1, 0, 1], 4, (0, 2)),
        ((4, 1, 1), [0, 0, 1, 1], 1, (0,)),
        ((4, 1, 1), [0, 0, 1, 1], 8, (0, 1, 2, 3)),
        ((2, 2, 1), [0, 0, 1, 1], 2, (0,)),
        ((1, 1, 4), [0, 0, 1, 1], 2, (0, 1)),  # the tensor axis spans the processes: both hold every row
        ((3, 1, 1), [0, 1, 1], 2, (0,)),
        ((3, 1, 1), [1, 0, 1], 2, (0, 1)),  # a shard with rows of two streams
    ],
)
def test_a_process_feeds_the_streams_whose_rows_its_devices_hold(shape, processes, streams, expected):
    assert local_streams(mesh_of(shape, processes), streams) == expected


@pytest.mark.parametrize(
    ("shape", "processes", "parts"),
    [((4, 1, 1), [0, 0, 1, 1], 2), ((1, 1, 4), [0, 0, 1, 1], 1), ((2, 1, 2), [0, 1, 2, 3], 2), ((4, 1, 1), [0] * 4, 1)],
)
def test_processes_on_the_same_rows_are_one_part(shape, processes, parts):
    assert row_parts(mesh_of(shape, processes)) == parts


def test_every_stream_is_fed_by_somebody():
    for streams in range(1, 9):
        fed = set()
        for me in range(4):
            processes = [0 if p == me else 1 for p in (0, 0, 1, 1, 2, 2, 3, 3)]
            fed |= set(local_streams(mesh_of((8, 1, 1), processes), streams))
        assert fed == set(range(streams))


def batch(rows: int) -> Batch:
    arrays = dict.fromkeys(("segments", "positions", "pool", "side", "content", "positives", "valid"), np.zeros(rows))
    return Batch(tokens=np.arange(rows * 3).reshape(rows, 3), **arrays)


def test_rows_keep_their_order_and_are_split():
    mesh = make_mesh(MeshConfig())
    (placed,) = put_rows((batch(4 * jax.device_count()),), mesh, streams=(0, 1), of=2)
    np.testing.assert_array_equal(placed.tokens, batch(4 * jax.device_count()).tokens)
    assert placed.tokens.sharding.spec == PartitionSpec(("data", "fsdp"))
    assert placed.patches is None


def test_a_process_may_hold_only_its_own_streams():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(KeyError):  # one device holds all rows: stream 0 is missing
        put_rows((batch(2),), mesh, streams=(1,), of=2)


def test_rows_that_the_mesh_does_not_divide_are_an_error():
    mesh = SimpleNamespace(shape={"data": 3, "fsdp": 1, "tensor": 1})
    with pytest.raises(ValueError, match="4 rows do not divide over 3 devices"):
        put_rows((batch(4),), mesh)
