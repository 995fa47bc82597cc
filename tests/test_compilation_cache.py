"""Where compiled programs are kept: the user's cache folder, or where jax is told to; nowhere if so asked."""

import json
import os
import subprocess
import sys

import pytest

from virtue_jax.compilation_cache import DIRECTORY, ENABLED, default_directory, use_compilation_cache

MIN_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def test_it_is_the_users_cache_folder_by_kind_of_processor(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    use_compilation_cache(environment=environment)
    folder = default_directory(environment)
    assert environment[DIRECTORY] == str(folder) and folder.is_dir()
    assert folder.parent == tmp_path / "virtue_jax" / "compiled"
    assert environment[MIN_SECONDS] == "0" and ENABLED not in environment


def test_jaxs_own_variables_come_first(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path), DIRECTORY: "/own", MIN_SECONDS: "5"}
    use_compilation_cache(environment=environment)
    assert environment[DIRECTORY] == "/own" and environment[MIN_SECONDS] == "5"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    use_compilation_cache(environment=environment)
    assert DIRECTORY not in environment


def test_switched_off_nothing_is_made(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    use_compilation_cache(False, environment)
    assert environment[ENABLED] == "false" and DIRECTORY not in environment
    assert not list(tmp_path.iterdir())


PROGRAM = """
import json, sys
{imported}
from virtue_jax.compilation_cache import use_compilation_cache
use_compilation_cache({enabled})
assert ("jax" in sys.modules) == {before}
import jax
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
jax.jit(lambda x: x * 3.5 + 1)(2.0)
print(json.dumps(len(hits)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("imported", ["", "import jax"])
def test_small_programs_are_read_the_second_time(tmp_path, imported):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}

    def hits(enabled: bool = True) -> int:
        program = PROGRAM.format(imported=imported, enabled=enabled, before=bool(imported))
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert hits() == 0
    assert hits() > 0
    assert hits(False) == 0
