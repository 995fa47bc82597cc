"""What makes two starts the same run, and what a folder holds that was made for another one."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from virtue_jax.atomic_files import replace_text
from virtue_jax.train.step.config import TrainConfig

MADE_FOR = "made_for.json"
ROWS, TOKENIZER, CHECKPOINTS = "rows.json", "tokenizer", "checkpoints"

# What does not make it another run: how it is spread, saved, watched and told, and where the same model lies.
_FREE = {
    "mesh": None,
    "memory_gib": 0,
    "log_every": 0,
    "checkpoint_every": 0,
    "checkpoint_minutes": 0,
    "keep": 0,
    "nonfinite": "",
    "skip_limit": 0,
    "watchdog_minutes": 0,
    "profile_steps": None,
}


def run_identity(config: TrainConfig) -> dict:
    """What must agree for a run to be resumed: everything but `_FREE`, workers, micro-batches, remat, the attention
    backend, and the place of a model whose weights are known by their digest."""
    identity = dataclasses.asdict(config) | _FREE
    identity["data"] |= {"workers": 0, "prefetch": 0, "bad_rows": 0}
    identity["data"]["order"] = [list(config.data.sources), list(config.data.rows)]  # dicts of other order are equal
    for group in identity["data"]["rows"].values():
        group["micro_batches"] = 0
    if identity["model"]["directory"]:
        identity["model"]["directory"] = "a model directory"
    identity["numerics"] |= {"remat": "", "attention": ""}
    return json.loads(json.dumps(identity))


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run in `workdir` has got so far that it can be resumed."""
    folder = workdir / CHECKPOINTS
    return folder.exists() and any(re.fullmatch(r"step_\d+", path.name) for path in folder.iterdir())


def forget_another_run(workdir: Path, config: TrainConfig, shards: int, say: Callable[[str], None]) -> None:
    """Removes row groups and a tokenizer that a start with another configuration, model or mesh made in `workdir`, if
    no step of it was saved; the leader calls it. Where there are checkpoints, they decide whether this is the same run.

    shards: in how many parts the mesh splits the rows.
    """
    if has_checkpoint(workdir):
        return
    wanted = {"run": run_identity(config), "model": config.model.directory, "shards": shards}
    file = workdir / MADE_FOR
    if file.exists() and json.loads(file.read_text()) == wanted:
        return
    for leftover in (workdir / ROWS, workdir / TOKENIZER):
        if leftover.exists():
            say(f"{leftover} was made for another configuration, of which no step was saved: it is made anew")
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    replace_text(file, json.dumps(wanted, indent=1) + "\n")
