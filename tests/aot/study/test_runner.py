"""Points are compiled once, side by side within the memory limit; what is killed or fails is told and tried again."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from study_run import FAKE, QUICK, run_points

from virtue_jax.aot.study.compile_job import CompileJob
from virtue_jax.aot.study.content_key import ROOT
from virtue_jax.aot.study.entry import read_entry
from virtue_jax.aot.study.point import Point
from virtue_jax.aot.study.runner import Limits, Runner


@pytest.fixture
def log(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def point(batch: int, **fake) -> Point:
    overrides = tuple((f"fake.{name}", value) for name, value in fake.items())
    return Point(f"batch {batch}", "configs/virtue_2b_scar.py", "v5e:4x4", batch, overrides=overrides)


def events(log: Path, kind: str) -> list[int]:
    """Batches of the points that were started, or ended."""
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [int(words[2]) for words in lines if words[0] == kind]


def test_every_point_is_compiled_once_whatever_it_is_called(tmp_path, log):
    first, second = point(16, seconds=0.3), point(32, seconds=0.3)  # long enough to be looked at
    points = [first, second, replace(first, name="another name")]
    entries = run_points(points, tmp_path / "cache")
    assert sorted(events(log, "start")) == [16, 32]
    assert [entries[each].report["batch"] for each in points] == [16, 32, 16]
    assert all(entry.seconds > 0 and entry.peak_gib > 0 for entry in entries.values())
    assert run_points(points, tmp_path / "cache") == entries
    assert len(events(log, "start")) == 2
    assert not list((tmp_path / "cache/work").glob("*/*"))


def test_what_does_not_fit_is_a_result_like_any(tmp_path, log):
    (entry,) = run_points([point(16384)], tmp_path / "cache").values()
    assert not entry.report["fits"] and not entry.error
    run_points([point(16384)], tmp_path / "cache")
    assert events(log, "start") == [16384]


@pytest.mark.parametrize(
    ("fake", "told"),
    [
        ({"fail": "no such axis", "status": 2}, "exit status 2: compiling ... | virtue compile: no such axis"),
        ({"fail": "Traceback", "status": 1}, "exit status 1: compiling ... | virtue compile: Traceback"),
        ({"fail": "too large", "status": 3}, "exit status 3, but no whole report: none was written"),
        ({"half": 1}, "exit status 0, but no whole report: it cannot be read"),
    ],
)
def test_a_point_that_fails_is_told_and_the_others_go_on_and_it_is_tried_again(tmp_path, log, fake, told):
    lines = []
    for _ in range(2):
        failed, whole = run_points([point(16, **fake), point(32)], tmp_path / "cache", say=lines.append).values()
        assert failed.report is None and told in failed.error
        assert whole.report["batch"] == 32
    assert sorted(events(log, "start")) == [16, 16, 32]
    assert any("FAILED" in line and told in line for line in lines)


def test_what_is_kept_names_no_place_of_this_machine(tmp_path):
    said = f"{ROOT}/virtue_jax/a.py:1 /opt/python/site-packages/jax/b.py:2"
    (entry,) = run_points([point(16, fail=said)], tmp_path).values()
    assert entry.error.endswith("virtue_jax/a.py:1 jax/b.py:2") and str(ROOT) not in entry.error


def test_a_killed_compilation_is_told(tmp_path):
    job = CompileJob(point(16, seconds=60), "key", tmp_path, FAKE)
    job.start()
    os.kill(job._process.pid, signal.SIGKILL)
    while (entry := job.result()) is None:
        time.sleep(0.01)
    assert "killed by signal 9 (SIGKILL)" in entry.error
    job.close()


def test_a_program_that_cannot_be_run_ends_the_study(tmp_path):
    with pytest.raises(OSError, match="no-such-program"):
        Runner(tmp_path, ["no-such-program"], QUICK, print).run({point(16): "key"})


def test_a_damaged_entry_is_compiled_again(tmp_path, log):
    run_points([point(16)], tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*.json")
    whole = path.read_text()
    for text in (whole[:-200], "", json.dumps(json.loads(whole) | {"format": 0}), '{"format": 1}'):
        path.write_text(text)
        assert read_entry(path) is None
        run_points([point(16)], tmp_path / "cache")
    assert len(events(log, "start")) == 5


def study_process(study: Path, cache: Path) -> subprocess.Popen:
    line = [sys.executable, str(Path(__file__).parent / "study_run.py"), str(study), str(cache), "2"]
    # A shell's background job ignores Ctrl-C, and hands that down.
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=heeding)


def until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_study_ends_its_compilations_and_compiles_no_finished_point_again(tmp_path, log, number):
    study, cache, gate = tmp_path / "study.json", tmp_path / "cache", tmp_path / "gate"
    base = {"config": "a.py", "topology": "v5e:4x4"}
    gated = [{"batch": batch, "set": {"fake": {"gate": str(gate)}}} for batch in (48, 64)]
    values = {"question": "?", "kind": "grid", "base": base, "points": [{"batch": 16}, {"batch": 32}, *gated]}
    study.write_text(json.dumps(values))
    process = study_process(study, cache)
    until(lambda: len(events(log, "start")) == 4 and len(list(cache.glob("*.json"))) == 2)
    process.send_signal(number)
    process.communicate(timeout=120)
    running = [int(line.split()[3]) for line in log.read_text().splitlines() if line.startswith("start")][2:]
    until(lambda: not any(alive(pid) for pid in running))
    gate.touch()
    told, _ = study_process(study, cache).communicate(timeout=120)
    assert "2 of 4 points were compiled before" in told and "[4/4]" in told
    assert sorted(events(log, "start")) == [16, 32, 48, 48, 64, 64]
    assert sorted(events(log, "end")) == [16, 32, 48, 64]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def overlap(log: Path) -> int:
    """How many compilations ran at once at most."""
    most = now = 0
    for line in log.read_text().splitlines():
        now += 1 if line.startswith("start") else -1
        most = max(most, now)
    return most


@pytest.mark.parametrize(("memory_gib", "most"), [(1.5, 1), (2.5, 2), (9.0, 3)])
def test_no_more_points_run_at_once_than_memory_and_workers_allow(tmp_path, log, memory_gib, most):
    """Each waits until as many were started as there should be at once; no run file tells of another's memory."""
    points = [replace(point(16 * n, started=most, seconds=0.1), config=f"{n}.py") for n in range(1, 5)]
    run_points(points, tmp_path / "cache", Limits(3, memory_gib, 1.0, 0.01))
    assert overlap(log) == most


def test_measured_memory_replaces_the_guess(tmp_path, log):
    """The first takes 0.2 GiB where 0.05 were guessed: of 0.35, only one more at a time has room."""
    points = [point(16 * n, seconds=0.3, mib=200) for n in range(1, 4)]
    lines = []
    limits = Limits(3, 0.35, 0.05, 0.01)
    run_points(points[:1], tmp_path / "cache", limits)
    log.unlink()
    run_points(points, tmp_path / "cache", limits, lines.append)
    assert overlap(log) == 1
    assert any("about 0.2 GiB" in line for line in lines)


def test_memory_of_the_study_itself_is_not_counted_as_its_compilations(tmp_path):
    """On Linux `ru_maxrss` of a process starts at what its parent had when it forked."""
    held = bytearray(os.urandom(2**20)) * 700
    (entry,) = run_points([point(16, seconds=0.3, mib=100)], tmp_path / "cache").values()
    assert 0.1 < entry.peak_gib < 0.5 < len(held) / 2**30


def test_a_point_that_needs_more_than_there_is_is_not_started_and_told(tmp_path, log):
    run_points([point(16, mib=300)], tmp_path / "cache", Limits(1, 4.0, 0.05, 0.01))
    log.unlink()
    entries = run_points([point(16, mib=300), point(32)], tmp_path / "cache", Limits(1, 0.1, 0.05, 0.01))
    refused = entries[point(32)]
    assert refused.report is None and "--memory-gib is 0.1" in refused.error
    assert not events(log, "start")
    with pytest.raises(ValueError, match="--memory-gib 1: a point is taken to need 2 GiB"):
        Runner(tmp_path, FAKE, Limits(1, 1.0, 2.0), print)


def test_a_point_that_another_process_compiles_is_waited_for(tmp_path, log):
    other = CompileJob(point(16), point(16).identity(), tmp_path, FAKE)
    other.start()
    lines = []

    def say(line):
        lines.append(line)
        if "another process" in line:
            while (entry := other.result()) is None:
                time.sleep(0.01)
            entry.write(tmp_path / f"{point(16).identity()}.json")
            other.close()

    run_points([point(16)], tmp_path, say=say)
    assert events(log, "start") == [16]
    assert any("another process compiles it" in line for line in lines)


def test_progress_counts_points_and_tells_what_is_left(tmp_path):
    lines = []
    run_points([point(16 * n, seconds=0.05) for n in (1, 2, 3)], tmp_path, Limits(1, 4.0, 1.0, 0.01), lines.append)
    finished = [line for line in lines if line.startswith("[")]
    assert [line.split("]")[0] for line in finished] == ["[1/3", "[2/3", "[3/3"]
    assert "left" in finished[0] and "left" not in finished[2]
    assert "fits" in finished[0] and "MFU" in finished[0]
