"""Two processes of which one meets bad data: both end, and what was left out is written down."""

import json
import shutil
import time

import pytest
from test_processes import kill_and_resume, made_model, started

pytestmark = pytest.mark.slow
PATIENCE = 240  # seconds


def test_when_the_data_of_one_process_is_bad_all_end_and_it_is_named(tmp_path):
    kill_and_resume.make_scenes(tmp_path / "scenes")
    made_model(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "scenes", broken)
    for image in (broken / "images").rglob("*.png"):
        image.write_bytes(image.read_bytes()[:50])
    workdir = tmp_path / "run"
    second = [f"--config.data.sources.scenes.path={broken}"]
    processes = started(tmp_path, workdir, 2, own_options={1: second})
    end = time.monotonic() + PATIENCE
    try:
        statuses = [process.wait(max(1.0, end - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
    said = (workdir / "said-1.txt").read_text()
    assert all(statuses) and statuses[1] == 2, said[-2500:]
    assert "process 1: " in said and "cannot be used" in said
    left_out = [json.loads(line) for line in (workdir / "quarantine.jsonl").read_text().splitlines()]
    assert len(left_out) >= 10 and all("truncated" in entry["error"] for entry in left_out)
