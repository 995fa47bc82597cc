"""The loader: what a step holds, that nothing is lost or repeated, and that it resumes and is shared to the bit."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from words import BROKEN, TIGHT, Words, queries, take, words_loader

from virtue_jax.batch import QUERY, TARGET, RowShape
from virtue_jax.data.identity import content_id
from virtue_jax.data.packing.invariants import validate


def test_every_element_comes_exactly_once_an_epoch_and_broken_ones_are_quarantined_once(encoder):
    loader = words_loader(encoder, Words(41, broken=BROKEN), streams=1)
    steps = take(loader, 40)
    assert sum(step.report.waiting for step in steps) > 20
    state = loader.get_state()["streams"]["0"]
    drawn = [loader.reader.order[e].row for e in range(state["drawn"])]
    packed = Counter(queries(steps)) + Counter(f"word:{drawn[e]}" for e in state["waiting"])
    assert packed == Counter(f"word:{row}" for row in drawn if row not in BROKEN)
    assert len(drawn) > 3 * 41 and state["bad"] == sum(row in BROKEN for row in drawn)
    for epoch in range(3):
        assert sorted(drawn[41 * epoch :][:41]) == list(range(41))
    found = [entry for step in steps for entry in step.report.quarantined]
    assert [drawn[entry["element"]] for entry in found] == [row for row in drawn if row in BROKEN]
    first = [entry for entry in found if entry["element"] < 41]
    assert {(entry["origin"], entry["error"]) for entry in first} == {
        (f"word:{r}", f"word:{r}: damaged") for r in BROKEN
    }


def test_what_waits_comes_first_and_nobody_waits_long(encoder):
    loader = words_loader(encoder, Words(200), streams=1)
    waited = Counter()
    for _ in range(30):
        step = next(loader)
        waited.update(loader.get_state()["streams"]["0"]["waiting"])
        assert step.report.pairs + step.report.waiting == 32
    loader.close()
    assert waited and max(waited.values()) < 8


def test_a_step_holds_pairs_whole_with_labels_that_match(encoder):
    steps = take(words_loader(encoder, Words(50)), 5)
    source = {Words(50).origin(row): Words(50).pair(row) for row in range(50)}
    for step in steps:
        there = Counter(o for group in step.report.origins for row in group for o in row)
        for (shape, rows), batch, origins in zip(TIGHT, step.groups, step.report.origins, strict=True):
            assert len(batch.tokens) == len(origins) == rows
            validate(batch, shape, encoder.config)
            for r, row in enumerate(origins):
                assert batch.valid[r].sum() == len(row)
                for k, origin in enumerate(row):
                    if origin in source:
                        pair = source[origin]
                        assert batch.side[r, k] == QUERY and batch.positives[r, k, 0] == content_id(pair.positive)
                        assert there[f"{origin} answer"] == there[origin]
                        drawn = sum(n for o, n in there.items() if o.startswith(f"{origin} not"))
                        assert drawn == there[origin] * min(2, len(pair.negatives))
                    else:
                        assert batch.side[r, k] == TARGET and batch.content[r, k] >= 0
        tokens = tuple(int((batch.segments > 0).sum()) for batch in step.groups)
        assert step.report.tokens == tokens and step.report.slots == (160, 96)
        assert step.report.pairs == sum(int((b.valid & (b.side == QUERY)).sum()) for b in step.groups)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_pack_what_one_does(encoder, processes):
    source = Words(60, broken=BROKEN)
    whole = words_loader(encoder, source)
    parts = [
        words_loader(encoder, source, own=range(4 * p // processes, 4 * (p + 1) // processes)) for p in range(processes)
    ]
    expected, shared = take(whole, 6), [take(part, 6) for part in parts]
    for step, steps in zip(expected, zip(*shared, strict=True), strict=True):
        for g, batch in enumerate(step.groups):
            for name, array in batch._asdict().items():
                if array is not None:
                    joined = np.concatenate([getattr(part.groups[g], name) for part in steps])
                    np.testing.assert_array_equal(joined, array, err_msg=name)
        for name in ("pairs", "waiting"):
            assert sum(getattr(part.report, name) for part in steps) == getattr(step.report, name)
        quarantined = sorted(entry["element"] for part in steps for entry in part.report.quarantined)
        assert quarantined == sorted(entry["element"] for entry in step.report.quarantined)
    joined = {k: v for part in parts for k, v in part.get_state()["streams"].items()}
    assert {"streams": joined} == whole.get_state()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 30}, "batch_size=30: expected a multiple of 4"),
        ({"batch_size": 0}, "multiple of 4"),
        ({"streams": 3, "batch_size": 33}, "4 rows of .*expected a multiple of 3"),
        ({"own": [4]}, "own streams"),
        ({"own": []}, "own streams"),
        ({"own": [1, 0]}, "ascending"),
        ({"groups": []}, "no row group"),
        ({"groups": [(RowShape(8, patches=4), 4)]}, "vision_rows"),
        ({"interleave": 0}, "interleave 0"),
        ({"prefetch": 0}, "1 or more"),
        ({"negatives": -1}, "0 or more"),
        ({"bad_rows": 1.0}, "less than 1"),
        ({"pixels": "bfloat16"}, "pixels"),
        ({"weights": [1.0, 2.0]}, "positive number for each of 1 sources"),
    ],
)
def test_impossible_numbers_are_refused(encoder, options, message):
    with pytest.raises(ValueError, match=message):
        words_loader(encoder, Words(4), **options)
    with pytest.raises(ValueError, match="at least one row"):
        words_loader(encoder, Words(0))


WORKERS = """
import multiprocessing
import sys
from words import BROKEN, Words, make_encoder, same, words_loader

def main():
    encoder, source = make_encoder(sys.argv[1]), Words(30, broken=BROKEN)
    threads, workers = (words_loader(encoder, source, streams=2, worker_count=count) for count in (0, 3))
    assert all(same(next(threads), next(workers)) for _ in range(5))
    assert len(multiprocessing.active_children()) == 3
    assert threads.get_state() == workers.get_state()
    threads.set_state(workers.get_state())
    assert same(next(threads), next(workers))
    threads.close()
    workers.close()
    assert not multiprocessing.active_children()
    print("equal")

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_worker_processes_give_the_same_steps_from_a_plain_script(golden, tmp_path):
    (tmp_path / "script.py").write_text(WORKERS)
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(golden)],
        env=os.environ | {"PYTHONPATH": str(here)},
        cwd=here.parents[2],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.stdout.strip().endswith("equal"), done.stderr[-2000:]
