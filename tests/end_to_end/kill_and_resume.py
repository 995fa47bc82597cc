"""Kills training at random moments, starts it again to the end, and compares with a run that nothing disturbed.

    python tests/end_to_end/kill_and_resume.py --runs 30 --seed 0 [--workdir DIR] [--json FILE]

Every run has a fresh folder and one to three kills, by SIGKILL or SIGTERM, each at a moment drawn from: any time of the
start-up, any time of the steps, any time while a checkpoint is being written. It must end with the same parameters to
the bit, the same losses, and the same data in the same steps: none lost, none twice.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from virtue_jax.exit_status import SAVED

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KINDS = ("start-up", "steps", "save")
PATIENCE = 600.0  # seconds that one start may take


@dataclass
class Kill:
    """One kill: when it was meant to come, when it came (last step that was finished by then), and what it ended as."""

    moment: str
    by: str
    seconds: float = 0.0
    at_step: int = 0
    status: int = 0
    saving: bool = False


@dataclass
class Outcome:
    """One disturbed run."""

    run: int
    kills: list[Kill] = field(default_factory=list)
    starts: int = 0
    repeated_steps: int = 0
    same_parameters: bool = False
    same_losses: bool = False
    lost: int = 0
    repeated: int = 0
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return self.same_parameters and self.same_losses and not self.lost and not self.repeated


class Harness:
    """Starts, watches and kills `virtue train` on one set of scenes. cache: compiled programs, shared by all starts."""

    def __init__(self, folder: Path, steps: int | None = None):
        self.scenes, self.folder = folder / "scenes", folder
        self._options = [] if steps is None else [f"--config.steps={steps}"]
        self._environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        make_scenes(self.scenes)

    def start(self, workdir: Path) -> subprocess.Popen:
        config = ["--config", str(HERE / "survival_run.py"), f"--config.data.sources.scenes.path={self.scenes}"]
        command = [sys.executable, str(HERE / "recorded_train.py"), *config, *self._options, "--workdir", str(workdir)]
        workdir.mkdir(parents=True, exist_ok=True)
        with (workdir / "said.txt").open("ab") as said:
            return subprocess.Popen(command, cwd=ROOT, env=self._environment, stdout=said, stderr=said)

    def finish(self, workdir: Path) -> float:
        """One start, to the end; how many seconds it took."""
        begin = time.perf_counter()
        if self.start(workdir).wait(PATIENCE) != 0:
            raise AssertionError(f"{workdir}: the run failed:\n{(workdir / 'said.txt').read_text()[-3000:]}")
        return time.perf_counter() - begin

    def killed(self, workdir: Path, kill: Kill, rng: random.Random, pace: "Pace") -> bool:
        """One start that is killed as `kill` says; False if it came to its end first."""
        begin, process = time.perf_counter(), self.start(workdir)
        _await_moment(process, workdir, kill.moment, rng, pace)
        kill.seconds, kill.at_step = time.perf_counter() - begin, last_step(workdir)
        kill.saving = saving(workdir)
        process.send_signal(getattr(signal, kill.by))
        kill.status = process.wait(PATIENCE)
        if kill.status == 0:
            return False
        # A SIGTERM before Python has the handler ends the process as it ends any other.
        expected = (-signal.SIGKILL,) if kill.by == "SIGKILL" else (SAVED, -signal.SIGTERM)
        if kill.status not in expected:
            said = (workdir / "said.txt").read_text()[-3000:]
            raise AssertionError(f"{workdir}: {kill} ended with {kill.status}, expected {expected}:\n{said}")
        return True


@dataclass(frozen=True)
class Pace:
    """Of the undisturbed run: seconds until its first step, seconds per step, steps."""

    start_up: float
    step: float
    steps: int


def _await_moment(process: subprocess.Popen, workdir: Path, moment: str, rng: random.Random, pace: Pace) -> None:
    """Returns at the moment, or when the process has ended."""
    first = last_step(workdir)
    if moment == "start-up":
        _wait(process, lambda: False, rng.uniform(0.0, pace.start_up))
        return
    if moment == "steps":
        wanted = rng.randint(min(first + 1, pace.steps), pace.steps)
        _wait(process, lambda: last_step(workdir) >= wanted, PATIENCE)
        _wait(process, lambda: False, rng.uniform(0.0, pace.step))
        return
    skipped = rng.randint(0, 3)  # saves to let pass
    for _ in range(skipped):
        _wait(process, lambda: saving(workdir), PATIENCE)
        _wait(process, lambda: not saving(workdir), PATIENCE)
    _wait(process, lambda: saving(workdir), PATIENCE)
    _wait(process, lambda: False, rng.uniform(0.0, 0.3))


def _wait(process: subprocess.Popen, until, seconds: float) -> None:
    end = time.perf_counter() + seconds
    while process.poll() is None and time.perf_counter() < end and not until():
        time.sleep(0.002)


def last_step(workdir: Path) -> int:
    """The last step that the run has finished."""
    file = workdir / "consumed-0.jsonl"
    lines = file.read_bytes().splitlines() if file.exists() else []
    return next((json.loads(line)["step"] for line in reversed(lines) if line.endswith(b"}")), 0)


def saving(workdir: Path) -> bool:
    """Whether a checkpoint is unfinished."""
    folder = workdir / "checkpoints"
    return folder.exists() and any("tmp" in path.name for path in folder.iterdir())


def losses(workdir: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    if len({record["step"] for record in records}) != len(records):
        raise AssertionError(f"{workdir}: metrics.jsonl has a step twice")
    return {record["step"]: record["loss"] for record in records}


def parameters_of(model: Path) -> dict[str, np.ndarray]:
    from virtue_jax.model_directory import read_parameters, stored_parameters

    return read_parameters(model, stored_parameters(model))


def same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(one[path].tobytes() == other[path].tobytes() for path in one)


def origins(steps: dict[int, list]) -> Counter:
    """How often each origin was used."""
    return Counter(name for groups in steps.values() for rows in groups for row in rows for name in row)


def disturb(harness: Harness, run: int, reference: Path, pace: Pace, seed: int) -> Outcome:
    """A fresh run with one to three kills, compared with the reference."""
    from recorded_train import consumed

    rng = random.Random(f"{seed} {run}")
    outcome, workdir = Outcome(run), harness.folder / f"run_{run}"
    begin = time.perf_counter()
    wanted_kills = rng.randint(1, 3)
    while len(outcome.kills) < wanted_kills:
        kill = Kill(rng.choice(KINDS), rng.choice(["SIGKILL", "SIGTERM"]))
        outcome.starts += 1
        if harness.killed(workdir, kill, rng, pace):
            outcome.kills.append(kill)
        elif outcome.kills:
            break  # it was finished before the moment came
        else:
            shutil.rmtree(workdir)  # nothing disturbed it: once more
    harness.finish(workdir)
    outcome.starts += 1
    outcome.seconds = time.perf_counter() - begin
    wanted, got = consumed(reference), consumed(workdir)
    lines = (workdir / "consumed-0.jsonl").read_text().count("\n")
    outcome.repeated_steps = lines - len(got)
    outcome.same_parameters = same_bits(parameters_of(workdir / "model"), parameters_of(reference / "model"))
    outcome.same_losses = losses(workdir) == losses(reference)
    missing = {step: wanted[step] for step in wanted if got.get(step) != wanted[step]}
    other = {step: got[step] for step in got if got[step] != wanted.get(step)}
    outcome.lost = (origins(missing) - origins(other)).total() + len(missing)
    outcome.repeated = (origins(other) - origins(missing)).total()
    if outcome.good:
        shutil.rmtree(workdir)
    return outcome


def make_scenes(folder: Path) -> None:
    from virtue_jax.data.scenes import Vocabulary, write_scenes

    every = Vocabulary()
    words = Vocabulary(every.kinds[:4], every.colours[:4], every.textures[:1], every.scenes[:4], relative=False)
    if not folder.exists():
        write_scenes(
            folder, train=96, eval=0, seed=5, width=(64, 64), height=(64, 64), objects=(2, 3), vocabulary=words
        )


def undisturbed(harness: Harness) -> tuple[Path, Pace]:
    """The reference, run twice: the first fills the cache of compiled programs, the second is timed."""
    warm, workdir = harness.folder / "warm", harness.folder / "undisturbed"
    harness.finish(warm)
    begin, process = time.perf_counter(), harness.start(workdir)
    _wait(process, lambda: last_step(workdir) >= 1, PATIENCE)
    start_up = time.perf_counter() - begin
    process.wait(PATIENCE)
    steps = max(losses(workdir))
    pace = Pace(start_up, (time.perf_counter() - begin - start_up) / steps, steps)
    if not same_bits(parameters_of(warm / "model"), parameters_of(workdir / "model")):
        raise AssertionError("two undisturbed runs differ: nothing can be said about disturbed ones")
    return workdir, pace


def survive(folder: Path, runs: int, seed: int, steps: int | None = None, say=print) -> dict:
    """All runs; {"pace", "outcomes", "totals"}, fit for JSON."""
    harness = Harness(folder, steps)
    reference, pace = undisturbed(harness)
    say(f"undisturbed: first step after {pace.start_up:.1f} s, {pace.step:.2f} s per step, {pace.steps} steps")
    outcomes = []
    for run in range(runs):
        outcome = disturb(harness, run, reference, pace, seed)
        outcomes.append(outcome)
        kills = ", ".join(f"{k.by} in {k.moment} at step {k.at_step}{' (saving)' * k.saving}" for k in outcome.kills)
        verdict = "same" if outcome.good else "DIFFERENT"
        say(f"run {run:3d}: {verdict}; {outcome.repeated_steps} steps repeated; {outcome.seconds:.0f} s; {kills}")
    kills = [kill for outcome in outcomes for kill in outcome.kills]
    totals = {
        "runs": runs,
        "seed": seed,
        "good runs": sum(outcome.good for outcome in outcomes),
        "kills": dict(Counter(f"{kill.by}, {kill.moment}" for kill in kills)),
        "kills while a checkpoint was unfinished": sum(kill.saving for kill in kills),
        "starts": sum(outcome.starts for outcome in outcomes),
        "repeated steps": sum(outcome.repeated_steps for outcome in outcomes),
        "bit-identical parameters": sum(outcome.same_parameters for outcome in outcomes),
        "identical losses": sum(outcome.same_losses for outcome in outcomes),
        "lost examples": sum(outcome.lost for outcome in outcomes),
        "repeated examples": sum(outcome.repeated for outcome in outcomes),
    }
    return {"pace": asdict(pace), "outcomes": [asdict(outcome) for outcome in outcomes], "totals": totals}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=None, help="steps of a run (default: the run file's)")
    parser.add_argument("--workdir", type=Path, default=None, help="default: a temporary folder")
    parser.add_argument("--json", type=Path, default=None, help="where the figures go")
    options = parser.parse_args()
    folder = options.workdir or Path(tempfile.mkdtemp(prefix="kill_and_resume_"))
    folder.mkdir(parents=True, exist_ok=True)
    found = survive(folder, options.runs, options.seed, options.steps, say=lambda line: print(line, flush=True))
    for name, value in found["totals"].items():
        print(f"{name}: {value}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(0 if found["totals"]["good runs"] == options.runs else 1)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(HERE)]
    main()
