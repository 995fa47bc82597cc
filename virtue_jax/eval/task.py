"""What every evaluation task is: rows that are questions, ways of asking them, and what a right answer is worth."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from virtue_jax.config import Compat
from virtue_jax.data.example import Example
from virtue_jax.eval.config import EvalConfig
from virtue_jax.eval.metrics import ranked_metrics, ranking
from virtue_jax.eval.question import Question
from virtue_jax.eval.result import Scored


@dataclass(frozen=True)
class Presentation:
    """How people read a task's results. chance, chance_by_type: what guessing gives; None = not drawn."""

    title: str
    subtitle: str = ""
    modes: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    chance: float | None = None
    chance_by_type: float | None = None


class Task(ABC):
    """A subclass is one file of `eval/tasks/`, and a row of `open_task.TASKS`.

    Its constructor takes an `EvalConfig` and the behaviour of the model that is asked, and raises what opening
    files raises. Reading a row raises `InvalidExample`, or whatever else the row provokes.
    """

    MODES: ClassVar[tuple[str, ...]] = ("question",)  # ways of asking; the first is the one that counts
    HEADLINE: ClassVar[str] = "hit@1"
    PRESENTATION: ClassVar[Presentation]

    def __init__(self, config: EvalConfig, compat: Compat):
        unknown = [mode for mode in config.modes if mode not in self.MODES]
        if unknown:
            raise ValueError(f"modes {list(config.modes)}: expected some of {', '.join(self.MODES)}")
        self.config, self.compat = config, compat
        self.left_out: frozenset[int] = frozenset()  # rows known to be bad, from which other questions take nothing
        self.modes = tuple(dict.fromkeys(config.modes)) or self.MODES

    @property
    def rows(self) -> range:
        """The rows that are asked."""
        return range(min(self.config.limit or len(self), len(self)))

    @abstractmethod
    def __len__(self) -> int:
        """How many rows there are."""

    @abstractmethod
    def origin(self, row: int) -> str:
        """File and row."""

    @abstractmethod
    def question(self, row: int) -> Question:
        """Without reading pixels."""

    def query(self, question: Question, mode: str) -> Example | None:
        """The question asked in one of `modes`; None: it cannot be asked so."""
        return question.query

    def score(self, question: Question, score: np.ndarray) -> Scored:
        """What score[n] of the candidates is worth."""
        ranked = [question.keys[i] for i in ranking(score)]
        return Scored(question.row, ranked_metrics(ranked, question.labels), question.dataset)
