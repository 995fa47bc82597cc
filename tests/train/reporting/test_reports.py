import json
from types import SimpleNamespace

import pytest

from virtue_jax.train.reporting.reports import Interval, packing_metrics


def report(pairs, tokens, waiting=0):
    return SimpleNamespace(
        pairs=pairs, waiting=waiting, tokens=tokens, slots=(100, 50), patches=(30, 0), patch_capacity=(40, 0)
    )


def test_an_interval_sums_its_steps_and_starts_anew():
    interval = Interval(1, 1)
    interval.add(report(3, (80, 20), waiting=5))
    interval.add(report(4, (70, 40), waiting=2))
    sums, _ = interval.gather(bad=7)
    assert sums["pairs"] == [7] and sums["tokens"] == [150, 60] and sums["bad"] == [7]
    assert sums["waiting"] == [2]  # now, not ever
    assert packing_metrics(sums, ["images", "text"]) == {
        "row_efficiency": pytest.approx(0.7),
        "row_efficiency/images": 0.75,
        "row_efficiency/text": 0.6,
        "patch_efficiency": 0.75,
        "waiting": 2,
    }
    interval.add(report(1, (1, 1)))
    assert interval.gather()[0]["pairs"] == [1]


def test_streams_that_several_processes_have_count_once(monkeypatch):
    """Two processes with both of two streams each, as where the tensor axis spans them."""
    monkeypatch.setattr("virtue_jax.train.reporting.reports.gather_bytes", lambda data: [data, data])
    interval = Interval(2, 2)
    interval.add(report(8, (80, 20)))
    assert interval.gather()[0]["pairs"] == [8]


def test_the_longest_wait_is_told_with_its_process(monkeypatch):
    def two_processes(data):
        other = json.loads(data) | {"wait": 3.5}
        return [data, json.dumps(other).encode()]

    monkeypatch.setattr("virtue_jax.train.reporting.reports.gather_bytes", two_processes)
    interval = Interval(1, 2)
    interval.add(report(8, (80, 20)), towers=2.5)
    interval.add(report(8, (80, 20)), towers=4.0)
    sums, slowest = interval.gather(0.5)
    assert slowest == (3.5, 1) and sums["towers"] == [13.0]
