"""Files that appear whole or not at all (directories: test_model_directory.py)."""

import os
import socket
import subprocess

import pytest

from virtue_jax.atomic_files import new_file, replace_text


def test_a_file_appears_when_it_is_whole_and_the_old_one_stays_until_then(tmp_path):
    path = tmp_path / "a.npz"
    path.write_text("old")
    with new_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.suffix == ".npz" and temporary.parent == tmp_path
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("bad row"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path, error):
    path = tmp_path / "a"
    replace_text(path, "old")
    with pytest.raises(type(error)), new_file(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_the_system_refuses_names_the_file_and_keeps_its_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent/a was not written"):
        replace_text(tmp_path / "absent/a", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder was not written"):
        replace_text(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_leftovers_of_processes_that_are_gone_are_removed_and_those_of_others_stay(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = {
        owner: tmp_path / f".a.npz.incomplete.{socket.gethostname()}.{owner}.npz" for owner in (gone.pid, os.getppid())
    }
    for path in left.values():
        path.write_text("half")
    elsewhere = tmp_path / f".a.npz.incomplete.another-host.{gone.pid}.npz"
    elsewhere.write_text("half")
    replace_text(tmp_path / "a.npz", "whole")
    assert set(tmp_path.iterdir()) == {tmp_path / "a.npz", left[os.getppid()], elsewhere}
