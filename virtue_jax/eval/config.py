"""What to evaluate, and when: frozen values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EvalConfig:
    """One evaluation. task: a name of `eval/open_task.py`.

    path: file or folder of its questions; image_root: folder that image paths are relative to (default: beside them).
    prompt: kind of visual prompt that queries carry, "box", "point" or "mask". modes: ways of asking, empty = all that
    the task has. limit: only the first so many questions, 0 = all.
    every: training steps between two evaluations; it is evaluated after the last step as well. bad_rows: share of
    questions that may be unreadable before a run stops.
    """

    path: str
    task: str = "scar"
    image_root: str = ""
    prompt: str = "box"
    modes: tuple[str, ...] = ()
    limit: int = 0
    every: int = 1000
    bad_rows: float = 0.001

    def __post_init__(self):
        if self.limit < 0:
            raise ValueError(f"limit is {self.limit}: expected at least 1 question, or 0 for all")
        if self.every < 1:
            raise ValueError(f"every is {self.every}: expected at least 1 step")
