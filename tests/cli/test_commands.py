"""The one door: every command's line is parsed the same way, its help is quick, and a mistake is one line."""

import argparse
import subprocess
import sys

import pytest

from virtue_jax.cli import compile as compile_command
from virtue_jax.cli import rows as rows_command
from virtue_jax.cli.main import COMMANDS, main
from virtue_jax.cli.parser import Parser, UsageError, add_run_file, parse
from virtue_jax.cli.run_file import read_run_file
from virtue_jax.exit_status import DONE, INTERRUPTED, REFUSED, UNREAD

HEAVY = ("jax", "torch", "transformers", "flax", "tensorflow", "grain", "matplotlib")
VIRTUE = [sys.executable, "-c", "from virtue_jax.cli.main import main; main()"]
RUN_FILE = """
import ml_collections

def get_config(variant="small"):
    if variant not in ("small", "large"):
        raise ValueError(f"variant {variant!r}")
    return ml_collections.ConfigDict({
        "steps": 3 if variant == "small" else 30, "rate": 0.5, "name": "x", "flag": False, "shape": (1, 2),
        "nothing": ml_collections.config_dict.placeholder(str), "part": {"size": 1},
    })
"""


@pytest.fixture
def run_file(tmp_path):
    (tmp_path / "run.py").write_text(RUN_FILE)
    return str(tmp_path / "run.py")


def values(*line: str) -> dict:
    """The run file's values of a command that has an option of its own."""
    parser = Parser(prog="virtue some")
    add_run_file(parser)
    parser.add_argument("--workdir")
    args = parse(parser, parser, list(line))
    return read_run_file(args.config, args.settings)


def test_no_command_needs_jax_or_torch_to_tell_what_it_takes():
    code = "\n".join(
        [
            "import contextlib, io, sys",
            "from virtue_jax.cli.main import COMMANDS, main",
            "for name in COMMANDS:",
            "    with contextlib.redirect_stdout(io.StringIO()) as told, contextlib.suppress(SystemExit):",
            "        main([name, '--help'])",
            "    assert told.getvalue().startswith(f'usage: virtue {name} '), told.getvalue()",
            f"print([name for name in {HEAVY} if name in sys.modules])",
        ]
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (DONE, "[]\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_usage_purpose_and_every_option(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: virtue {command} ") and "--traceback" in told
    assert ("--config.PATH" in told) == (command in ("train", "prepare", "rows", "compile"))


def test_the_commands_are_listed_without_and_with_help(capsys):
    main([])
    listed = capsys.readouterr().out
    assert all(name in listed for name in COMMANDS)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out == listed
    main(["--version"])
    assert capsys.readouterr().out.startswith("virtue_jax ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["trian"], "virtue: no command 'trian'; there are scenes, train,"),
        (["--verbose"], "virtue: not understood: --verbose"),
        (["embed", "--out", "x.npz"], "virtue embed: the following arguments are required: --model, --input"),
        (["embed", "--mod", "m"], "virtue embed: the following arguments are required: --model, --input, --out"),
        (["train", "--config.steps=3"], "virtue train: the following arguments are required: --config, --workdir"),
        (["scenes", "--out", "x", "--config.steps=3"], "virtue scenes: not understood: --config.steps=3"),
        (["flags", "v6e", "v5e"], "virtue flags: not understood: v5e"),
        (["rows", "--config", "x.py", "--devices", "0"], "argument --devices: 0 is not a positive integer"),
    ],
)
def test_a_wrong_line_is_told_with_the_usage_of_its_command(line, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(line)
    assert ended.value.code == REFUSED
    told = capsys.readouterr().err
    assert message in told and "usage: virtue" in told and "--help` tells" in told and "Traceback" not in told


def test_an_error_shows_where_it_comes_from_if_asked_before_or_after_the_command(capsys):
    line = ["flags", "v99"]
    with pytest.raises(SystemExit) as ended:
        main(line)
    assert ended.value.code == REFUSED and "(`virtue --traceback flags ...` shows where)" in capsys.readouterr().err
    for shown in (["--traceback", *line], [*line, "--traceback"]):
        with pytest.raises(ValueError, match="v99"):
            main(shown)


def test_values_are_set_before_and_after_the_run_file_and_take_its_types(run_file):
    line = ["--config.steps=5", "--config", run_file, "--config.rate", "-1e-3", "--workdir", "w", "--config.name=-x=y"]
    read = values(*line, "--config.flag=true", "--config.shape=(3,4)", "--config.nothing=text", "--config.part.size=-2")
    assert read == {
        **{"steps": 5, "rate": -0.001, "name": "-x=y", "flag": True, "shape": (3, 4), "nothing": "text"},
        "part": {"size": -2},
    }


def test_a_variant_and_the_last_of_two_values_count(run_file):
    assert values("--config", f"{run_file}:large")["steps"] == 30
    assert values("--config", run_file, "--config.steps=5", "--config.steps=6")["steps"] == 6
    assert values("--config", run_file, "--config.part.new=None", "--config.flag", "false")["part"]["new"] is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (["--config.steps=abc"], "--config.steps=abc: invalid literal"),
        (["--config.steps"], "--config.steps"),
        (["--config.other.size=1"], "--config.other.size=1: the run file has no section 'other'"),
    ],
)
def test_a_value_that_cannot_be_set_is_named(run_file, setting, message):
    with pytest.raises(ValueError, match=message):
        values("--config", run_file, *setting)


def test_a_value_without_a_run_file_among_its_options_is_refused():
    parser = Parser(prog="virtue some")
    with pytest.raises(UsageError, match=r"not understood: --config\.steps=3"):
        parse(parser, parser, ["--config.steps=3"])
    assert isinstance(parser, argparse.ArgumentParser)


@pytest.mark.parametrize("line", [["--help"], ["train", "--help"], ["flags", "gpu", "--explain"], ["scale", "--list"]])
def test_a_reader_that_leaves_ends_a_command_without_a_word(line):
    """As `virtue --help | head -1` does, only that the reader has left before anything is written."""
    process = subprocess.Popen([*VIRTUE, *line], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    errors = process.stderr.read().decode()
    # Done: argparse keeps the error of an unbuffered pipe to itself.
    assert process.wait(60) in (UNREAD, DONE) and errors == ""


def test_ctrl_c_ends_a_command_in_a_line(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("virtue_jax.cli.flags.run", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["flags", "v6e"])
    assert ended.value.code == INTERRUPTED
    assert capsys.readouterr().err == "virtue flags: stopped by Ctrl-C\n"
    with pytest.raises(KeyboardInterrupt):
        main(["flags", "v6e", "--traceback"])


def test_a_table_in_a_file_has_its_lines_whole():
    line = [*VIRTUE, "flags", "gpu", "--explain"]
    told = subprocess.run(line, capture_output=True, text=True, env={"PYTHONPATH": "."}, check=True).stdout
    assert "…" not in told and len({len(row) for row in told.splitlines() if row.startswith("│")}) == 1


def test_choices_that_are_written_down_twice_are_equal():
    from virtue_jax.data.row_groups.published import PUBLISHED

    assert tuple(PUBLISHED) == rows_command.LENGTHS


def test_set_is_short_for_the_options_of_compile(run_file):
    parser = Parser(prog="virtue compile")
    compile_command.add_arguments(parser)
    line = ["--config", run_file, "--topology", "v5e:4x4", "--set", "batch=64", "--set=part.size=2", "--config.steps=9"]
    args = parse(parser, parser, line)
    assert args.batch == 64
    assert compile_command._inputs(args)["overrides"] == {"part.size": "2", "steps": "9"}
    assert read_run_file(args.config, args.settings)["part"] == {"size": 2}
    for wrong in ("batch", "=3", "batch=0"):
        with pytest.raises(UsageError, match="argument --set: "):
            parse(parser, parser, [*line, "--set", wrong])
