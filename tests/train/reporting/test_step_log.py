import json
from types import SimpleNamespace

from virtue_jax.data.loading.stream import TooManyBad
from virtue_jax.data.unreadable import Unreadable
from virtue_jax.train.reporting.step_log import StepLog


def test_what_a_failing_process_left_out_is_written_down_before_it_ends(tmp_path):
    lines = []
    config = SimpleNamespace(data=SimpleNamespace(streams=1))
    clock = SimpleNamespace(seconds=lambda part: 0.0)
    out = SimpleNamespace(say=lines.append)
    log = StepLog(config, None, None, out, clock, tmp_path, streams=(0,), step=0)
    pending = SimpleNamespace(report=SimpleNamespace(quarantined=({"element": 1, "origin": "a:1", "error": "cut"},)))
    log.data_failed(TooManyBad("too many", [Unreadable("a:5", "not there").entry(5)]), pending)
    written = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [entry["element"] for entry in written] == [1, 5] and len(lines) == 2
