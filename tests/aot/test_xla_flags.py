"""The table of compiler flags, and the command that prints it."""

import os
import subprocess
import sys

import pytest

from virtue_jax.aot.xla_flags import FLAGS, as_arguments, as_compiler_options, flags_for, variable_for
from virtue_jax.cli.main import main


@pytest.mark.parametrize("target", FLAGS)
def test_every_flag_is_named_once_and_has_a_reason(target):
    names = [flag.name for flag in FLAGS[target]]
    assert len(names) == len(set(names))
    assert all(flag.name.startswith("xla_") and flag.value and flag.reason for flag in FLAGS[target])


@pytest.mark.parametrize("target", FLAGS)
def test_the_command_prints_one_line_that_a_shell_can_export(target, capsys):
    main(["flags", target])
    line = capsys.readouterr().out
    assert line == as_arguments(FLAGS[target]) + "\n"
    assert dict(word.removeprefix("--").split("=") for word in line.split()) == as_compiler_options(FLAGS[target])


@pytest.mark.parametrize("target", FLAGS)
def test_explain_names_every_flag_and_the_variable(target, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    main(["flags", target, "--explain"])
    said = capsys.readouterr().out
    assert variable_for(target) in said
    assert all(flag.name in said and flag.reason in said for flag in flags_for(target))


@pytest.mark.parametrize("arguments", [["v3"], [], ["v4", "v5e"], ["--all"]])
def test_an_unknown_target_is_refused_in_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["flags", *arguments])
    assert ended.value.code == 2
    assert "TARGET" in (said := capsys.readouterr().err) or "there are v4" in said


def test_the_installed_jaxlib_knows_every_gpu_flag():
    environment = os.environ | {"XLA_FLAGS": as_arguments(FLAGS["gpu"]), "JAX_PLATFORMS": "cpu"}
    # An unknown name in XLA_FLAGS ends the process when the first device is asked for.
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-500:]
