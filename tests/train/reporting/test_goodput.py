import io
import json
import time

import pytest
from rich.console import Console

from virtue_jax.train.reporting.goodput import FILE, Goodput


def test_nested_blocks_count_once(tmp_path):
    clock = Goodput(tmp_path)
    with clock.measure("steps"):
        time.sleep(0.02)
        with clock.measure("saves"):
            time.sleep(0.05)
    assert clock.seconds("saves") >= 0.05
    assert 0.02 <= clock.seconds("steps") < 0.05


def account(folder, **start):
    seconds = dict.fromkeys(("init", "compile", "restore", "data_wait", "steps", "saves"), 0.0)
    return {"from_step": 0, "last_step": 0, "wall": 0.0, **start, "seconds": seconds | start.get("seconds", {})}


def test_steps_done_again_are_lost_time(tmp_path):
    starts = [
        account(tmp_path, last_step=10, wall=14.0, seconds={"steps": 10.0, "init": 3.0}),
        account(tmp_path, from_step=6, last_step=8, wall=5.0, seconds={"steps": 2.0, "init": 3.0}),
    ]
    (tmp_path / FILE).write_text(json.dumps({"starts": starts}))
    clock = Goodput(tmp_path)
    clock.begin_at(8)
    clock.write(8)
    totals = clock.totals()
    assert totals["repeated_steps"] == 4 and totals["starts"] == 3
    assert totals["lost"] == pytest.approx(4.0)
    assert totals["steps"] == pytest.approx(8.0)
    assert totals["goodput"] == pytest.approx(8 / 19, rel=1e-2)
    assert totals["other"] == pytest.approx(19 - 12 - 6, abs=0.1)
    console = Console(file=io.StringIO())
    clock.tell(console)
    assert "in 3 starts; 4 steps repeated" in console.file.getvalue()


def test_a_damaged_account_is_begun_anew(tmp_path):
    (tmp_path / FILE).write_text('{"starts": [{')
    clock = Goodput(tmp_path)
    clock.write(3)
    assert len(json.loads((tmp_path / FILE).read_text())["starts"]) == 1
