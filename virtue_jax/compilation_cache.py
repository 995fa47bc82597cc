"""jax's persistent compilation cache: what one command compiled, the next one reads.

Everything goes through the environment, so that jax need not be imported before a command knows that it wants it, and
processes that a command starts share the cache.
"""

import hashlib
import os
import platform
import sys
from collections.abc import MutableMapping
from pathlib import Path

DIRECTORY = "JAX_COMPILATION_CACHE_DIR"
ENABLED = "JAX_ENABLE_COMPILATION_CACHE"
# By default jax keeps nothing that compiles within a second; a start consists of many such programs.
_KEEP_ALL = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


def use_compilation_cache(enabled: bool = True, environment: MutableMapping[str, str] = os.environ) -> None:
    """Turns the cache on for this process and those that it starts, or off; values that are set already stay.

    The folder is `JAX_COMPILATION_CACHE_DIR`, else one of the user's cache folder (`default_directory`); without a
    folder that can be written, there is no cache.
    """
    if not enabled:
        environment[ENABLED] = "false"
    elif DIRECTORY in environment:
        pass  # a person's own folder, and jax's own limits unless they are set too
    elif (folder := _writable(default_directory(environment))) is not None:
        environment[DIRECTORY] = str(folder)
    for name, value in _KEEP_ALL.items():
        environment.setdefault(name, value)
    if "jax" in sys.modules and environment is os.environ:
        _tell_jax(environment)


def default_directory(environment: MutableMapping[str, str] = os.environ) -> Path:
    """`$XDG_CACHE_HOME/virtue_jax/compiled/PROCESSOR`, in `~/.cache` where that is not set.

    A folder for each kind of processor: programs for CPUs hold instructions that another machine, with the same home,
    may not know.
    """
    home = environment.get("XDG_CACHE_HOME")
    cache = Path(home) if home and os.path.isabs(home) else Path.home() / ".cache"
    return cache / "virtue_jax" / "compiled" / _processor()


def _processor() -> str:
    """Name of the machine's kind of processor: architecture, and a digest of what Linux says of its instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [f"flags: {platform.processor()}"]
    wanted = ("flags", "Features", "model name", "CPU part")
    facts = sorted({line for line in lines if line.split(":")[0].strip() in wanted})
    return f"{platform.machine()}-{hashlib.sha256('|'.join(facts).encode()).hexdigest()[:12]}"


def _writable(folder: Path) -> Path | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def _tell_jax(environment: MutableMapping[str, str]) -> None:
    """jax reads its environment when it is imported, which has happened."""
    import jax

    jax.config.update("jax_enable_compilation_cache", environment.get(ENABLED, "true").lower() in ("1", "true", "yes"))
    if directory := environment.get(DIRECTORY):
        jax.config.update("jax_compilation_cache_dir", directory)
    seconds, size = (environment[name] for name in _KEEP_ALL)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float(seconds))
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", int(size))
