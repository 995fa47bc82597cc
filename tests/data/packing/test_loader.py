"""The loader: what a step holds, that nothing is lost or repeated, and that it resumes and is shared to the bit."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from virtue_jax.batch import QUERY, TARGET, RowShape
from virtue_jax.config import HieraConfig, Sam2Config, TextConfig, VirtueConfig, VisionConfig
from virtue_jax.data.encoding.encode import ExampleEncoder
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.example import Example, InvalidExample, TrainingPair, VisualPrompt
from virtue_jax.data.packing.content import content_id
from virtue_jax.data.packing.loader import training_loader
from virtue_jax.data.packing.validate import validate

SPECIAL = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>")
SIZES = {"segmentation_tokens": 1, "sam_size": 64}


class Words:
    """Text pairs of many lengths, some of which share their positive; row i has i % 4 hard negatives.

    Those of `broken` cannot be read.
    """

    def __init__(self, count, name="word", broken=()):
        self.count, self.name, self.broken = count, name, set(broken)

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        if row in self.broken:
            raise InvalidExample(f"{self.origin(row)}: damaged")
        origin = self.origin(row)
        negatives = tuple(Example(f"not {i}", origin=f"{origin} not {i}") for i in range(row % 4))
        query = Example(f"{self.name} {row}" + " long" * (row * 7 % 11), origin=origin)
        return TrainingPair(query, Example(f"answer {row // 2}", origin=f"{origin} answer"), negatives)

    def origin(self, row):
        return f"{self.name}:{row}"


def make_encoder(golden):
    tokenizer = Tokenizer.load(Path(golden) / "tiny/vlm")
    text = TextConfig(1024, 64, 128, 1, 4, 2, (2, 3, 3), *(tokenizer.ids(t)[0] for t in SPECIAL))
    vision = VisionConfig(depth=1, embed_dim=32, num_heads=2, hidden_size=64)
    sam2 = Sam2Config(HieraConfig(8, 1, (1, 1, 1, 1), (2,)), image_size=64)
    return ExampleEncoder(VirtueConfig(sam2, vision, text), tokenizer)


@pytest.fixture(scope="module")
def encoder(golden):
    return make_encoder(golden)


TIGHT = [(RowShape(slots=40, examples=8, positives=2), 4), (RowShape(slots=24, examples=6), 4)]


def words_loader(encoder, source, **options):
    """Rows that are too few for all candidates, so that elements wait."""
    options = {"groups": TIGHT, "batch_size": 32, "seed": 1, "streams": 4, "negatives": 2, "bad_rows": 0.5} | options
    return training_loader([source] if isinstance(source, Words) else source, encoder, **options)


def same(first, second):
    return all(
        np.array_equal(a, b)
        for group, other in zip(first.groups, second.groups, strict=True)
        for a, b in zip(group, other, strict=True)
    )


def take(loader, steps):
    try:
        return [next(loader) for _ in range(steps)]
    finally:
        loader.close()


def queries(steps):
    """Origins of the queries, in order of packing."""
    flat = [o for step in steps for group in step.report.origins for row in group for o in row]
    return [o for o in flat if " " not in o]


BROKEN = (3, 11, 26)


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
    source = {Words(50).origin(row): Words(50)[row] for row in range(50)}
    for step in steps:
        there = Counter(o for group in step.report.origins for row in group for o in row)
        for (shape, rows), batch, origins in zip(TIGHT, step.groups, step.report.origins, strict=True):
            assert len(batch.tokens) == len(origins) == rows
            validate(batch, shape, **SIZES)
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


@pytest.mark.parametrize("stop", range(7))
def test_resume_goes_on_exactly_on_any_number_of_processes(encoder, stop):
    source = Words(40, broken=BROKEN)
    straight = words_loader(encoder, source, prefetch=3)
    steps, saved = [], {}
    for number in range(9):
        if number == stop:
            saved = json.loads(json.dumps(straight.get_state()))
        steps.append(next(straight))
    straight.close()
    assert stop == 0 or any(stream["waiting"] for stream in saved["streams"].values())
    for processes in (1, 2):
        parts = [
            words_loader(encoder, source, own=range(4 * p // processes, 4 * (p + 1) // processes), prefetch=1)
            for p in range(processes)
        ]
        for part in parts:
            part.set_state(saved)
        resumed = [take(part, 9 - stop) for part in parts]
        for step, again in zip(steps[stop:], zip(*resumed, strict=True), strict=True):
            for g, batch in enumerate(step.groups):
                joined = np.concatenate([part.groups[g].tokens for part in again])
                np.testing.assert_array_equal(joined, batch.tokens)
                joined = np.concatenate([part.groups[g].positives for part in again])
                np.testing.assert_array_equal(joined, batch.positives)
        assert {k: v for part in parts for k, v in part.get_state()["streams"].items()} == straight.get_state()[
            "streams"
        ]


def test_a_loader_can_be_set_back_while_it_runs(encoder):
    loader = words_loader(encoder, Words(30))
    first, state, second = next(loader), loader.get_state(), next(loader)
    loader.set_state(state)
    assert loader.get_state() == state
    assert same(next(loader), second) and not same(first, second)
    loader.close()
    loader.close()


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"next_batch": 3},
        {"streams": {"1": {"drawn": 1, "waiting": [], "bad": 0}}},
        {"streams": {"0": {"drawn": -1, "waiting": [], "bad": 0}}},
        {"streams": {"0": {"drawn": 3, "waiting": [9], "bad": 0}}},
        {"streams": {"0": {"drawn": 3, "waiting": [1], "bad": 0}}},
        {"streams": {"0": {"drawn": 3, "waiting": []}}},
        {"streams": {"0": {"drawn": 3, "waiting": [], "bad": 4}}},
    ],
)
def test_foreign_states_are_refused(encoder, state):
    with pytest.raises(ValueError, match="data position of stream 0 of 2"):
        words_loader(encoder, Words(4), streams=2, own=[0]).set_state(state)


def test_more_negatives_and_positives_than_asked_for_are_drawn_anew(encoder):
    class Many(Words):
        def __getitem__(self, row):
            answers = tuple(Example(f"p {i}") for i in range(5))
            return TrainingPair(Example("q"), answers, tuple(Example(f"n {i}") for i in range(9)))

    groups = [(RowShape(slots=64, examples=16, positives=2), 4)]
    steps = take(words_loader(encoder, Many(4), groups=groups, streams=1, batch_size=4, negatives=3), 3)
    seen = set()
    for step in steps:
        batch = step.groups[0]
        contents = set(batch.content[batch.valid].tolist())
        drawn = batch.positives[batch.valid & (batch.side == QUERY)]
        assert (drawn >= 0).all() and set(drawn.ravel().tolist()) <= contents
        assert (batch.valid & (batch.side == TARGET)).sum() == 4 * (2 + 3)
        seen |= set(map(tuple, drawn.tolist()))
    assert len(seen) > 3


def test_equal_content_has_equal_ids_and_nothing_else_has():
    mask = np.zeros((4, 4), bool)
    different = [
        Example("a"),
        Example("b"),
        Example("", ("a",)),
        Example("", (b"b",)),
        Example("a", ("b",)),
        Example("a", ("b",), VisualPrompt(box=(1, 2, 3, 4))),
        Example("a", ("b",), VisualPrompt(box=(1, 2, 3, 4), frame="sam")),
        Example("a", ("b",), VisualPrompt(points=((1, 2, 0),))),
        Example("a", ("b",), VisualPrompt(mask=mask)),
        Example("a", ("b",), VisualPrompt(mask=~mask)),
        Example("a", ("b",), VisualPrompt(mask="m.png")),
    ]
    assert len({content_id(example) for example in different}) == len(different)
    assert content_id(Example("a", origin="here")) == content_id(Example("a", origin="there"))
    assert all(0 <= content_id(example) < 2**31 for example in different)


def test_an_element_that_fits_no_step_is_quarantined_with_what_to_enlarge(encoder):
    class Long(Words):
        def __getitem__(self, row):
            return (
                TrainingPair(Example("x " * 90, origin="word:2"), Example("y"))
                if row == 2
                else super().__getitem__(row)
            )

    loader = words_loader(encoder, Long(20), streams=1)
    found = [entry for step in take(loader, 2) for entry in step.report.quarantined]
    assert found[0]["origin"] == "word:2"
    expected = r"word:2: too large to be packed: slots: \d+ needed, capacity 40; enlarge that in config.data.rows"
    assert re.match(expected, found[0]["error"])


def test_too_many_broken_elements_stop_the_run_after_the_steps_before(encoder):
    source = Words(100, broken=range(0, 100, 3))
    loader = words_loader(encoder, source, streams=1, batch_size=16, bad_rows=0.2)
    steps = 0
    with pytest.raises(
        ValueError, match=r"(1\d) of the \d+ elements that stream 0.*bad_rows 0.2.*quarantine.jsonl.*word:"
    ):
        for _ in range(20):
            next(loader)
            steps += 1
    assert steps >= 1
    with pytest.raises(ValueError, match="bad_rows"):
        next(loader)
    loader.close()
    assert len(take(words_loader(encoder, source, streams=1, batch_size=16, bad_rows=0.5), 20)) == 20


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
import sys
from tests.data.test_loader import BROKEN, Words, make_encoder, same, words_loader

def main():
    encoder, source = make_encoder(sys.argv[1]), Words(30, broken=BROKEN)
    threads, workers = (words_loader(encoder, source, streams=2, worker_count=count) for count in (0, 4))
    assert all(same(next(threads), next(workers)) for _ in range(5))
    assert threads.get_state() == workers.get_state()
    threads.set_state(workers.get_state())
    assert same(next(threads), next(workers))
    threads.close()
    workers.close()
    print("equal")

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_worker_processes_give_the_same_steps_from_a_plain_script(golden, tmp_path):
    (tmp_path / "script.py").write_text(WORKERS)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(golden)],
        env=os.environ | {"PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.stdout.strip().endswith("equal"), done.stderr[-2000:]
