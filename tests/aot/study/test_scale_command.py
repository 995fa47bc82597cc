"""`virtue scale` as a user runs it, with a quick program in place of the compiler."""

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from fake_reports import fake_report, write_report
from study_run import FAKE

from virtue_jax.aot.study import page
from virtue_jax.aot.study.table import csv_rows
from virtue_jax.cli.main import main
from virtue_jax.exit_status import INCOMPLETE, INTERRUPTED, REFUSED

RUN_FILE = """
import ml_collections

def get_config(variant=""):
    return ml_collections.ConfigDict({"batch_size": 16, "seed": 0, "fake": {}})
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    (tmp_path / "run.py").write_text(RUN_FILE)
    return tmp_path


@pytest.fixture
def unplotted(monkeypatch):
    """Plots take most of a study's time."""
    monkeypatch.setattr(page, "plots", lambda *asked: {})


def study(folder: Path, *points: dict, name: str = "small", **values) -> str:
    base = {"config": "run.py", "topology": "v5e:4x4"}
    asked = {"question": "Which?", "kind": "grid", "base": base, "points": list(points)} | values
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(asked))
    return f"{name}.yaml"


def command(*arguments: str) -> list[str]:
    return ["scale", *arguments, "--compile-command", shlex.join(FAKE), "--memory-gib", "8", "--point-gib", "1"]


def started(folder: Path) -> int:
    return (folder / "log").read_text().count("start")


def test_a_study_is_compiled_once_and_told_as_table_csv_plots_and_page(folder, capsys):
    given = study(folder, {"batch": 256}, {"batch": 512}, {"batch": 256, "set": {"seed": 1}, "name": "other"})
    main(command("--study", given, "--price", "v5e=1.2"))
    told = capsys.readouterr().out
    assert "batch 512" in told and "[3/3]" in told and "USD/M" in told
    rows = csv_rows(Path("runs/scale/points.csv").read_text())
    assert [row["batch"] for row in rows] == [256, 512, 256]
    assert {path.name for path in Path("runs/scale/small").glob("*.png")} >= {"mfu.png", "memory.png", "cost.png"}
    main(command("--study", given, "--page", "docs/scaling.md"))
    assert "3 of 3 points were compiled before" in capsys.readouterr().out and started(folder) == 3
    text = Path("docs/scaling.md").read_text()
    main(["scale", "--study", given, "--from", "docs/scaling/reports", "--page", "docs/scaling.md"])
    assert Path("docs/scaling.md").read_text() == text and started(folder) == 3


def test_a_change_of_the_run_file_compiles_again(folder, unplotted):
    given = study(folder, {"batch": 256})
    main(command("--study", given))
    (folder / "run.py").write_text("# a comment\n" + RUN_FILE)
    main(command("--study", given))
    assert started(folder) == 1
    (folder / "run.py").write_text(RUN_FILE.replace('"seed": 0', '"seed": 2'))
    main(command("--study", given))
    assert started(folder) == 2


def test_points_of_several_studies_are_compiled_once(folder, unplotted):
    one, two = study(folder, {"batch": 256}, name="one"), study(folder, {"batch": 256}, {"batch": 512}, name="two")
    main(command("--study", one, "--study", two))
    assert started(folder) == 2


def test_a_failing_point_is_shown_and_is_the_exit_status(folder, unplotted, capsys):
    given = study(folder, {"batch": 256}, {"batch": 512, "set": {"fake.fail": "no such axis"}})
    with pytest.raises(SystemExit) as status:
        main(command("--study", given))
    told = capsys.readouterr().out
    assert status.value.code == INCOMPLETE and "failed" in told and "no such axis" in told and "fits" in told
    assert len(csv_rows(Path("runs/scale/points.csv").read_text())) == 2


def test_reports_that_lack_a_point_are_the_exit_status(folder, unplotted):
    given = study(folder, {"batch": 256})
    main(command("--study", given))
    more = study(folder, {"batch": 256}, {"batch": 512})
    with pytest.raises(SystemExit) as status:
        main(["scale", "--study", more, "--from", "runs/scale/reports", "--out", "elsewhere"])
    assert status.value.code == INCOMPLETE and "not compiled" in Path("elsewhere/points.csv").read_text()


def test_a_dry_run_tells_commands_and_compiles_nothing(folder, capsys):
    given = study(folder, {"batch": 256}, {"batch": 512, "mesh": {"fsdp": 4}})
    main(command("--study", given, "--dry-run"))
    told = capsys.readouterr().out
    wanted = "virtue compile --config run.py --topology v5e:4x4 --batch 512 --mesh data=-1,fsdp=4,tensor=1"
    assert wanted in told and "2 compilations" in told
    assert not (folder / "log").exists() and not (folder / "runs").exists()


def test_a_stop_ends_with_its_status_and_the_same_command_goes_on(folder, unplotted):
    given = study(folder, {"batch": 256}, {"batch": 512, "set": {"fake.gate": str(folder / "gate")}})
    line = [sys.executable, "-c", "from virtue_jax.cli.main import main; main()", *command("--study", given)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(Path("runs/scale/cache").glob("*.json"))) < 1 or started(folder) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED and "the same command goes on" in told
    (folder / "gate").touch()
    main(command("--study", given))
    assert started(folder) == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give --study"),
        (["--study", "nothing"], "neither a file nor one of the presets"),
        (["--study", "weak", "--price", "v5e"], "--price: v5e: expected one of v4"),
        (["--study", "weak", "--price", "h100=2"], "--price: h100=2: expected one of v4"),
        (["--study", "weak", "--price", "v5e=free"], "USD per chip-hour, above 0"),
        (["--study", "weak", "--price", "v5e=-1"], "USD per chip-hour, above 0"),
        (["--study", "weak", "--from", "nowhere"], "--from nowhere: no whole report"),
        (["--study", "weak", "--memory-gib", "2"], "--memory-gib 2: a point is taken to need 8 GiB"),
        (["--study", "weak", "--calibration", "nowhere.json"], "nowhere.json"),
        (["--calibrate", "run"], "--calibrate: run: expected RUN_DIR=REPORT.json"),
        (["--study", "weak"], "the run file cannot be used"),
    ],
)
def test_mistakes_are_told_in_a_line(folder, capsys, arguments, told):
    with pytest.raises(SystemExit) as status:
        main(["scale", *arguments])
    assert status.value.code == REFUSED
    assert told in capsys.readouterr().err


def test_presets_are_listed(capsys):
    main(["scale", "--list"])
    told = capsys.readouterr().out
    assert all(name in told for name in ("mesh", "negatives", "published", "strong", "weak"))


def test_a_calibration_improves_the_studys_figures(folder, unplotted, capsys):
    Path("run").mkdir()
    records = [{"step": n, "seconds_per_step": 20.0, "data_wait_seconds": 0.0} for n in range(1, 9)]
    Path("run/metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_report(folder / "report.json", fake_report("run.py", "v5e:4x4", 512))
    main(["scale", "--calibrate", "run=report.json", "--out", "calibration.json"])
    main(command("--study", study(folder, {"batch": 512}), "--calibration", "calibration.json"))
    assert "calibrated" in capsys.readouterr().out
    (row,) = csv_rows(Path("runs/scale/points.csv").read_text())
    assert row["seconds_calibrated"] == pytest.approx(20.0)
