"""Streams go on to the bit; what is broken or too large is told and replaced; more targets than asked for are drawn."""

import json
import re
from concurrent.futures import Future

import numpy as np
import pytest
from words import BROKEN, Words, same, take, words_loader

from virtue_jax.batch import QUERY, TARGET, RowShape
from virtue_jax.data.example import Example, TrainingPair, VisualPrompt
from virtue_jax.data.identity import content_id
from virtue_jax.data.loading.step import pack_step
from virtue_jax.data.loading.stream import Stream, StreamRules, StreamState


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
        {"streams": {"0": {"drawn": 3, "waiting": [], "bad": -1}}},
    ],
)
def test_foreign_states_are_refused(encoder, state):
    with pytest.raises(ValueError, match="data position of stream 0 of 2"):
        words_loader(encoder, Words(4), streams=2, own=[0]).set_state(state)


def test_more_negatives_and_positives_than_asked_for_are_drawn_anew(encoder):
    class Many(Words):
        def pair(self, row):
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
        def pair(self, row):
            return TrainingPair(Example("x " * 90, origin="word:2"), Example("y")) if row == 2 else super().pair(row)

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
        ValueError,
        match=r"(1\d) of about \d+ pairs in the elements that stream 0.*bad_rows 0.2.*quarantine.jsonl.*word:",
    ):
        for _ in range(20):
            next(loader)
            steps += 1
    assert steps >= 1
    with pytest.raises(ValueError, match="bad_rows"):
        next(loader)
    loader.close()
    assert len(take(words_loader(encoder, source, streams=1, batch_size=16, bad_rows=0.5), 20)) == 20


def test_a_step_has_all_its_streams_read_before_it_waits_for_one_and_never_many_more(encoder):
    class Asked:
        """A pool that notes how much it was asked for, and how much of it is not taken yet, at each element taken."""

        asked, taken, first, most = 0, 0, None, 0

        def read(self, number):
            self.asked += 1
            self.most = max(self.most, self.asked - self.taken)
            future = Future()
            future.set_result(reader[number])
            future.result = lambda: self.take(Future.result(future))
            return future

        def take(self, element):
            self.first = self.first or self.asked
            self.taken += 1
            return element

    loader = words_loader(encoder, Words(50))
    reader, pool = loader.reader, Asked()
    rules = StreamRules(step_pairs=8, ahead=2, bad_rows=0.5)
    streams = [Stream(pool, index, 4, StreamState(), rules) for index in range(4)]
    for _ in range(6):
        pack_step(streams, reader.groups, encoder.config)
    assert pool.first >= 4 * 8
    assert pool.most <= 4 * (8 + 2) + 1
