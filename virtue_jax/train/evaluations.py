"""Evaluations of a run while it trains: when, with which weights, what they found, and the best model so far."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from virtue_jax.atomic_files import replace_text
from virtue_jax.config import from_dict, to_dict
from virtue_jax.data.example import InvalidExample
from virtue_jax.data.unreadable import Quarantine, read_whole_lines, too_many_bad
from virtue_jax.disk import told_of_the_disk
from virtue_jax.eval.answers import AnotherStopped, BadRow
from virtue_jax.eval.config import EvalConfig
from virtue_jax.eval.evaluate import check_rows, evaluate
from virtue_jax.eval.open_task import open_task
from virtue_jax.eval.result import EvalResult
from virtue_jax.eval.task import Task
from virtue_jax.parallel.processes import gather_bytes, is_leader
from virtue_jax.train.current_model import CurrentModel
from virtue_jax.train.step.config import TrainConfig
from virtue_jax.train.step.setup import TrainSetup
from virtue_jax.train.survival.interruption import Interrupted, StopSignal
from virtue_jax.train.survival.watchdog import LONG, Watchdog
from virtue_jax.train.trained_model import write_model
from virtue_jax.train.weights import StartingModel

RECORDS, BEST = "evals.jsonl", "best"


@dataclass(frozen=True)
class EvalRecord:
    """A line of `workdir/evals.jsonl`: what one evaluation found after a step. score: by which models are ranked."""

    step: int
    name: str
    score: float | None
    settings: EvalConfig
    result: EvalResult


class Evaluations:
    """`config.evals`: each after every so many steps and after the last, once, whatever interrupts the run.

    `workdir/evals.jsonl` keeps what they found, `workdir/best` the model that scored best in `config.keep_best` (its
    `virtue_config.json` names step and score). Questions that cannot be read are in the run's quarantine.

    Args:
        say: prints a line (on the leader).

    Raises:
        InvalidExample: more questions that cannot be read than an evaluation's `bad_rows` allows.
        ValueError: modes that a task does not have. Interrupted: told to stop while rows are checked.
    """

    def __init__(
        self,
        config: TrainConfig,
        start: StartingModel,
        run: TrainSetup,
        frozen: Mapping[str, jax.Array],
        workdir: Path,
        *,
        stop: StopSignal,
        watchdog: Watchdog,
        say: Callable[[str], None],
    ):
        self._config, self._start, self._frozen, self._workdir = config, start, frozen, workdir
        self._stop, self._watchdog, self._say = stop, watchdog, say
        self._records: list[EvalRecord] = []
        self._tasks: dict[str, Task] = {}
        self._bad: dict[str, dict[int, BadRow]] = {}
        if not config.evals:
            return
        self._model = CurrentModel(run, start.virtue, start.tokenizer, frozen)
        self._quarantine = Quarantine(workdir) if is_leader() else None
        for name, settings in config.evals.items():
            self._open(name, settings)

    def _open(self, name: str, settings: EvalConfig) -> None:
        try:
            self._tasks[name] = open_task(settings, self._start.virtue.compat)
        except InvalidExample:  # names its file
            raise
        except ValueError as error:
            raise ValueError(f"config.evals.{name}: {error}") from error
        self._bad[name] = {}
        self._meet(name, check_rows(self._tasks[name], self._model.encoder, self._beat))

    def begin_at(self, step: int) -> None:
        """Forgets what was found after `step`, which will be found again. All processes call it."""
        file = self._workdir / RECORDS
        kept = [record for record in read_whole_lines(file) if record["step"] <= step] if is_leader() else []
        if is_leader() and file.exists():
            replace_text(file, "".join(json.dumps(record) + "\n" for record in kept))
        kept = json.loads(gather_bytes(json.dumps(kept).encode())[0])
        self._records = [from_dict(EvalRecord, record, str(file)) for record in kept]

    def due(self, step: int) -> tuple[str, ...]:
        """Names of the evaluations that belong after `step` and are not done."""
        last = step == self._config.steps
        names = (name for name, x in self._config.evals.items() if step and (last or step % x.every == 0))
        return tuple(name for name in names if all(record.step != step for record in self._found(name)))

    def run(self, step: int, trainable: Mapping[str, jax.Array]) -> dict[str, float]:
        """Does what is due with the weights after `step`: {"NAME/MODE/METRIC": value, "NAME/seconds": ...}. All
        processes call it.

        Raises:
            Interrupted: told to stop; what is not finished is still due. InvalidExample: as the class has it.
        """
        deferred, self._stop.deferred = self._stop.deferred, True
        try:
            values = {}
            for name in self.due(step):
                begin = time.perf_counter()
                result = self._evaluate(name, trainable)
                self._keep_best(name, step, result, trainable)
                self._record(EvalRecord(step, name, result.score, self._config.evals[name], result))
                self._say(f"step {step}: {name}: {result.summary()}")
                scalars = result.scalars() | {"seconds": time.perf_counter() - begin}
                values |= {f"{name}/{metric}": value for metric, value in scalars.items()}
            return values
        except AnotherStopped as told:
            raise Interrupted(str(told), together=True) from told
        finally:
            self._stop.deferred = deferred

    def _evaluate(self, name: str, trainable: Mapping[str, jax.Array]) -> EvalResult:
        self._beat(0)
        bad = self._bad[name]
        with self._model.embedder(trainable) as embedder:
            return evaluate(
                self._tasks[name],
                embedder,
                left_out=tuple(bad.values()),
                bad=lambda late: self._meet(name, late),
                progress=self._beat,
            )

    def _beat(self, _done: int) -> None:
        self._watchdog.beat("an evaluation", LONG)
        if self._stop.received:
            raise Interrupted(f"{self._stop.received}: stopped in an evaluation; start the same command again")

    def _meet(self, name: str, unreadable: Sequence[BadRow]) -> None:
        """Sets unreadable questions aside, the same on all processes."""
        bad, allowed, rows = self._bad[name], self._config.evals[name].bad_rows, len(self._tasks[name].rows)
        bad |= {row.row: row for row in unreadable}
        if self._quarantine is not None:
            for entry in self._quarantine.add([row.entry() for row in unreadable]):
                self._say(f"left out: {entry['origin']}: {entry['error']} (all of them: {self._quarantine.path})")
        if unreadable and (len(bad) == rows or too_many_bad(len(bad), rows, allowed)):
            raise InvalidExample(
                f"{len(bad)} of {rows} questions cannot be read, more than config.evals.{name}.bad_rows {allowed} "
                f"allows; the last: {unreadable[-1].error}"
            )

    def _keep_best(self, name: str, step: int, result: EvalResult, trainable: Mapping[str, jax.Array]) -> None:
        """Before the record is written: a run that is killed between them does both again."""
        before = [record.score for record in self._found(name) if record.score is not None]
        if name != self._config.keep_best or result.score is None or result.score <= max(before, default=-1.0):
            return
        about = {"step": step, "evaluation": name, "metric": result.headline, "score": result.score}
        self._watchdog.beat("writing the model", LONG)
        folder, weights = self._workdir / BEST, {**self._frozen, **trainable}
        write_model(folder, self._start, weights, self._watchdog, provenance=about, overwrite=True)
        self._say(f"best so far in {name}: step {step}, {result.headline} {result.score:.4f}; the model: {folder}")

    def _record(self, record: EvalRecord) -> None:
        self._records.append(record)
        if is_leader():
            with told_of_the_disk("the evaluations", self._workdir), (self._workdir / RECORDS).open("a") as file:
                file.write(json.dumps(to_dict(record)) + "\n")

    def _found(self, name: str) -> list[EvalRecord]:
        """What this evaluation, of the same questions, found so far."""
        wanted = _questions(self._config.evals[name])
        return [record for record in self._records if record.name == name and _questions(record.settings) == wanted]


def _questions(settings: EvalConfig) -> EvalConfig:
    """The settings without those that change no score."""
    return dataclasses.replace(settings, every=1, bad_rows=0.0)
