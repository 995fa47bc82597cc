"""What an evaluation found, as frozen values; `config.to_dict` and `from_dict` carry them through JSON."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from virtue_jax.config import to_dict


@dataclass(frozen=True)
class Scored:
    """One question asked in one way. metrics: {name: value}; types: the same against one sort of candidates alone."""

    row: int
    metrics: dict[str, float]
    dataset: str = ""
    types: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """Means over questions; None where there is none."""

    questions: int
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class ModeResult:
    """One way of asking: over all questions, by data set, and by the type of candidates against the truth."""

    questions: int
    metrics: dict[str, float | None]
    datasets: dict[str, Scores]
    types: dict[str, Scores]


@dataclass(frozen=True)
class EvalResult:
    """results: by way of asking, the one that counts most first. headline: the metric that ranks models, higher is
    better. left_out: questions that could not be read."""

    task: str
    headline: str
    results: dict[str, ModeResult]
    left_out: int = 0

    @property
    def score(self) -> float | None:
        """The headline metric of the first way of asking."""
        return next(iter(self.results.values())).metrics.get(self.headline)

    def scalars(self) -> dict[str, float]:
        """{"MODE/METRIC": value} over all questions, for logs."""
        means = ((mode, name, x) for mode, result in self.results.items() for name, x in result.metrics.items())
        return {f"{mode}/{name}": value for mode, name, value in means if value is not None}

    def summary(self) -> str:
        """One line: the headline metric by way of asking."""
        values = [(mode, result.metrics.get(self.headline)) for mode, result in self.results.items()]
        shown = "  ".join(f"{mode} -" if value is None else f"{mode} {100 * value:.1f}" for mode, value in values)
        left_out = f"  ({self.left_out} questions left out)" if self.left_out else ""
        return f"{self.headline} in percent: {shown}{left_out}"


def summarise(scored: Iterable[Scored], metrics: Iterable[str]) -> ModeResult:
    """Means over questions. metrics: names that are there even without a question."""
    scored = sorted(scored, key=lambda question: question.row)
    datasets = sorted({question.dataset for question in scored})
    kinds = dict.fromkeys(kind for question in scored for kind in question.types)
    whole = _scores([question.metrics for question in scored], metrics)
    return ModeResult(
        whole.questions,
        whole.metrics,
        {name: _scores([q.metrics for q in scored if q.dataset == name]) for name in datasets},
        {kind: _scores([q.types[kind] for q in scored if kind in q.types]) for kind in kinds},
    )


def _scores(values: list[Mapping[str, float]], metrics: Iterable[str] = ()) -> Scores:
    names = dict.fromkeys([*metrics, *(name for value in values for name in value)])
    means = {name: float(np.mean([value[name] for value in values])) if values else None for name in names}
    return Scores(len(values), means)


def report(result: EvalResult) -> dict[str, dict]:
    """{mode: {"questions", METRIC: value, ..., "datasets": {name: {...}}, "types": {type: {...}}}}, as people read it:
    metrics stand beside the number of questions."""

    def flat(value):
        if not isinstance(value, dict):
            return value
        rest = {name: flat(part) for name, part in value.items() if name != "metrics"}
        counted = {"questions": rest.pop("questions")} if "questions" in rest else {}
        return {**counted, **value.get("metrics", {}), **rest}

    return {mode: flat(part) for mode, part in to_dict(result)["results"].items()}
