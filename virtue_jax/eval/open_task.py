"""Which evaluation tasks there are."""

import importlib
from typing import TYPE_CHECKING

from virtue_jax.config import Compat
from virtue_jax.eval.config import EvalConfig

if TYPE_CHECKING:
    from virtue_jax.eval.task import Task

# Module and class, imported when the task is opened, so that a command's help need not.
TASKS = {
    "scar": ("virtue_jax.eval.tasks.scar", "Scar"),
}


def open_task(config: EvalConfig, compat: Compat) -> "Task":
    """The task that a configuration names, its files open. compat: behaviour of the model that is asked.

    Raises:
        ValueError: no such task or mode. InvalidExample: files that are not the task's.
    """
    if config.task not in TASKS:
        raise ValueError(f"task {config.task!r} is not one of {', '.join(TASKS)}")
    module, name = TASKS[config.task]
    return getattr(importlib.import_module(module), name)(config, compat)
