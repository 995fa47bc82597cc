import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from virtue_jax.disk import DiskFull  # noqa: F401 (named by a subprocess)
from virtue_jax.train.step.optimizer import OptimizerConfig, make_optimizer
from virtue_jax.train.step.stages import TrainState
from virtue_jax.train.survival.checkpoints import RunCheckpoints
from virtue_jax.train.survival.readable import read_share

CONFIG = {"steps": 10, "data": {"path": "here"}}
OPTIMIZER = make_optimizer(OptimizerConfig(warmup_steps=1), steps=10)
MESH = Mesh(np.asarray(jax.devices()), ("all",))
WHOLE = NamedSharding(MESH, PartitionSpec())


def state_at(step):
    noise = jax.random.normal(jax.random.key(0), (100, 100))
    trainable = {"a.b": jnp.arange(8.0) + step, "c": jnp.ones((2, 2)), "d": noise}
    made = TrainState(jnp.int32(step), trainable, OPTIMIZER.init(trainable), jnp.int32(0))
    return jax.device_put(made, WHOLE)


def position(step):
    return {"streams": {"0": {"drawn": step, "waiting": [step - 1], "bad": 0}}}


def abstract(shardings=lambda path: WHOLE):
    def leaf(path, x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings(jax.tree_util.keystr(path)))

    return jax.tree_util.tree_map_with_path(leaf, state_at(0))


def restore(folder, config=CONFIG, frozen="f00d", abstract=None, lines=None):
    say = (lambda line: None) if lines is None else lines.append
    with RunCheckpoints(folder, keep=2, identity=config, frozen=frozen, say=say) as checkpoints:
        return checkpoints.restore(abstract or globals()["abstract"]())


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints of steps 4 and 6."""
    with RunCheckpoints(tmp_path / "run", keep=2, identity=CONFIG, frozen="f00d", say=print) as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(state_at(step), position(step), step=step)
        checkpoints.save(state_at(6), position(99), step=6)  # already there: not written again
    return tmp_path / "run"


def assert_same(state, other):
    for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(got, want)


def test_an_empty_folder_restores_nothing(tmp_path):
    assert restore(tmp_path / "run") is None


def test_the_newest_checkpoint_comes_back_with_its_data_position_and_is_named(saved):
    lines = []
    state, data = restore(saved, lines=lines)
    assert data == position(6)
    assert_same(state, state_at(6))
    assert sorted(path.name for path in saved.glob("step*")) == ["step_4", "step_6"]
    assert len(lines) == 1 and lines[0].startswith(f"resumed at step 6 from {saved / 'step_6'}, written ")


def test_a_checkpoint_comes_back_onto_other_shardings(saved):
    split = NamedSharding(MESH, PartitionSpec("all"))
    state, _ = restore(saved, abstract=abstract(lambda path: split if "a.b" in path else WHOLE))
    assert state.trainable["a.b"].sharding == split
    assert_same(state, state_at(6))


def test_another_configuration_is_refused_by_its_differences(saved):
    with pytest.raises(ValueError, match=r"data\.path: 'here' there, 'elsewhere' here"):
        restore(saved, {"steps": 10, "data": {"path": "elsewhere"}})


def test_other_frozen_weights_are_refused_by_both_digests(saved):
    with pytest.raises(ValueError, match=r"step_6 was trained over .* digest f00d, .* have beef; point"):
        restore(saved, frozen="beef")


def cut_a_file(step):
    largest = max((p for p in (step / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def flip_bits(step):
    """One in every file of values, in the middle."""
    for file in (p for p in (step / "state").rglob("d/*") if p.is_file()):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))


def other_values(step):
    """A whole checkpoint whose state is not the one that its meta names."""
    meta = next((step / "meta").rglob("metadata"))
    content = json.loads(meta.read_text())
    meta.write_text(json.dumps(content | {"state": "0" * 32}))


def emptied(step):
    shutil.rmtree(step)
    step.mkdir()


DAMAGES = [cut_a_file, flip_bits, other_values, emptied, lambda step: shutil.rmtree(step / "meta")]
IDS = ["cut file", "flipped bits", "other values", "empty folder", "no meta"]


@pytest.mark.parametrize("damage", DAMAGES, ids=IDS)
def test_a_damaged_newest_checkpoint_is_said_kept_aside_and_the_one_before_used(saved, damage):
    damage(saved / "step_6")
    lines = []
    state, data = restore(saved, lines=lines)
    assert int(state.step) == 4 and data == position(4)
    assert "step_6 is damaged and left out: " in lines[0]
    aside = list((saved / "damaged").iterdir())
    assert [p.name.split(".")[0] for p in aside] == ["step_6"] and str(aside[0]) in lines[1]
    with RunCheckpoints(saved, keep=2, identity=CONFIG, frozen="f00d") as checkpoints:  # its place is free again
        checkpoints.save(state_at(6), position(6), step=6)
    assert int(restore(saved).state.step) == 6


def test_processes_together_read_every_array_before_they_restore(saved):
    shares = [read_share(saved / "step_6" / "state", number, 2) for number in range(2)]
    whole = read_share(saved / "step_6" / "state", 0, 1)
    assert sorted(shares[0] + shares[1]) == whole and len(whole) == len(jax.tree.leaves(state_at(6)))


@pytest.mark.parametrize("damage", [cut_a_file, emptied], ids=["cut file", "empty folder"])
def test_one_process_alone_finds_what_it_cannot_read(saved, damage):
    damage(saved / "step_6")
    with pytest.raises((ValueError, OSError)):
        read_share(saved / "step_6" / "state", 0, 1)


def test_damage_everywhere_is_an_error_and_touches_nothing(saved):
    for step in (4, 6):
        emptied(saved / f"step_{step}")
    with pytest.raises(ValueError, match=r"none of the checkpoints of steps \[4, 6\] can be read .*start anew"):
        restore(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["step_4", "step_6"]


def test_what_a_killed_save_leaves_is_no_checkpoint_and_goes_with_the_next(saved):
    shutil.copytree(saved / "step_6", saved / "step_8.orbax-checkpoint-tmp")
    assert int(restore(saved).state.step) == 6
    with RunCheckpoints(saved, keep=2, identity=CONFIG, frozen="f00d") as checkpoints:
        checkpoints.save(state_at(8), position(8), step=8)
    assert sorted(path.name for path in saved.glob("step*")) == ["step_6", "step_8"]
    assert int(restore(saved).state.step) == 8


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(saved):
    """In a process whose files may not grow further: what the system says is EFBIG instead of ENOSPC."""
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_checkpoints as t
from pathlib import Path
with t.RunCheckpoints(Path({str(saved)!r}), keep=2, identity=t.CONFIG, frozen="f00d") as checkpoints:
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
    try:
        checkpoints.save(t.state_at(8), t.position(8), step=8)
        checkpoints.close()
    except t.DiskFull as error:
        print("said:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    wanted = rf"said: the .*checkpoint.* could not be written: no space left for {saved} .*start the same"
    assert re.search(wanted, done.stdout), done.stdout + done.stderr[-3000:]
    state, data = restore(saved)
    assert int(state.step) == 6 and data == position(6)
    assert_same(state, state_at(6))
