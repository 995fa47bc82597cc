"""A task's questions asked of a model: rows are checked first, then embedded and scored, by all processes together.

Every process asks its own share on its own devices. They meet after every block of questions, where they tell one
another what they found, so that all of them go on, stop or fail alike, and end with the same result.
"""

from collections.abc import Callable, Sequence

from virtue_jax.data.encoding.check import check_example
from virtue_jax.data.encoding.encode import ExampleEncoder
from virtue_jax.data.example import Example, InvalidExample
from virtue_jax.data.unreadable import Unreadable, readable
from virtue_jax.embedding.embedder import Embedder
from virtue_jax.embedding.readable import embed_readable
from virtue_jax.eval.answers import Answers, BadRow, share_of, together
from virtue_jax.eval.question import Question
from virtue_jax.eval.result import EvalResult, Scored, summarise
from virtue_jax.eval.task import Task
from virtue_jax.parallel.processes import process_count

BLOCK = 256  # questions of a process in work at once; a candidate that several of them have is embedded once


def refuse_bad(bad: Sequence[BadRow]) -> None:
    """The first bad row ends the evaluation.

    Raises:
        InvalidExample: names it.
    """
    if bad:
        raise InvalidExample(min(bad, key=lambda entry: entry.row).error)


def check_rows(
    task: Task, encoder: ExampleEncoder, progress: Callable[[int], None] | None = None
) -> tuple[BadRow, ...]:
    """The rows that cannot be asked, as far as headers show it; the same on all processes, which all call it.
    progress: called with the number of this process's rows that are done; may raise."""

    def check() -> Answers:
        bad = []
        for done, row in enumerate(share_of(task.rows), start=1):
            checked = readable(task.origin(row), _check_row, task, row, encoder)
            if isinstance(checked, Unreadable):
                bad.append(BadRow(row, *checked))
            if progress is not None:
                progress(done)
        return Answers(bad=tuple(bad))

    return together(check).bad


def _check_row(task: Task, row: int, encoder: ExampleEncoder) -> None:
    question = task.question(row)
    for example in (question.query, *_distinct([question]).values()):
        check_example(example, encoder)


def evaluate(
    task: Task,
    embedder: Embedder,
    *,
    left_out: Sequence[BadRow] = (),
    bad: Callable[[Sequence[BadRow]], None] = refuse_bad,
    progress: Callable[[int], None] | None = None,
) -> EvalResult:
    """Every way of asking over all questions; the same on all processes, which all call it.

    left_out: rows that are not asked (`check_rows`). bad: called with those of a block that turned out bad, which are
    left out as well unless it raises. progress: called with the number of this process's questions that are done, at
    least once for every call of the model; what is no `Exception` (a signal) may come out of it.

    Raises:
        InvalidExample: as `bad`. BaseException: what `progress` raised, here or on another process.
    """
    out = {entry.row for entry in left_out}
    rows = [row for row in task.rows if row not in out]
    share, longest = share_of(rows), -(-len(rows) // process_count())
    scored: dict[str, list[Scored]] = {mode: [] for mode in task.modes}
    for start in range(0, longest, BLOCK):
        block = together(lambda start=start: _ask(task, embedder, share[start : start + BLOCK], start, progress))
        for mode, answers in block.scored.items():
            scored[mode] += answers
        if block.bad:
            bad(block.bad)
            out |= {entry.row for entry in block.bad}
    results = {mode: summarise(answers, (task.HEADLINE,)) for mode, answers in scored.items()}
    return EvalResult(task.config.task, task.HEADLINE, results, len(out))


def _ask(task: Task, embedder: Embedder, rows: Sequence[int], before: int, progress: Callable | None) -> Answers:
    """All ways of asking some questions; what cannot be read in one of them leaves the question out of all."""
    bad: dict[int, Unreadable] = {}
    questions, asked = {}, []  # asked: (mode, row, query)
    for row in rows:
        read = readable(task.origin(row), _queries, task, row)
        if isinstance(read, Unreadable):
            bad[row] = read
        else:
            questions[row], queries = read
            asked += [(mode, row, query) for mode, query in queries.items()]
    candidates = _distinct(questions.values())
    examples = [*candidates.values(), *(query for _, _, query in asked)]
    if not examples:
        return Answers(bad=_bad_rows(bad))
    counted = None if progress is None else lambda done: progress(before + len(rows) * done // len(examples))
    vectors, unreadable = embed_readable(embedder, examples, counted)
    bad |= _questions_of(unreadable, questions, list(candidates), asked)
    place = {key: i for i, key in enumerate(candidates)}
    scored: dict[str, list[Scored]] = {mode: [] for mode in task.modes}
    for (mode, row, _), vector in zip(asked, vectors[len(candidates) :], strict=True):
        if row not in bad:
            own = vectors[[place[key] for key in questions[row].keys]]
            scored[mode].append(task.score(questions[row], own @ vector))
    answers = {mode: tuple(values) for mode, values in scored.items()}
    return Answers(answers, _bad_rows(bad))


def _bad_rows(bad: dict[int, Unreadable]) -> tuple[BadRow, ...]:
    return tuple(BadRow(row, *problem) for row, problem in bad.items())


def _queries(task: Task, row: int) -> tuple[Question, dict[str, Example]]:
    question = task.question(row)
    queries = {mode: task.query(question, mode) for mode in task.modes}
    return question, {mode: query for mode, query in queries.items() if query is not None}


def _distinct(questions) -> dict:
    """{key: candidate}; of candidates with one key the first counts."""
    candidates: dict = {}
    for question in questions:
        for key, candidate in zip(question.keys, question.candidates, strict=True):
            candidates.setdefault(key, candidate)
    return candidates


def _questions_of(unreadable: dict, questions: dict[int, Question], keys: list, asked: list) -> dict[int, Unreadable]:
    """{row: what is wrong} of the questions that need an unreadable example."""
    bad = {asked[i - len(keys)][1]: problem for i, problem in unreadable.items() if i >= len(keys)}
    for number, problem in unreadable.items():
        if number < len(keys):
            rows = (row for row, question in questions.items() if keys[number] in question.keys)
            bad |= {row: Unreadable(questions[row].origin, problem.error) for row in rows}
    return bad
