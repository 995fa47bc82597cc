"""Our training step against a plain PyTorch loop, side by side in one run on this machine, and what each saving gives.

    python tests/benchmarks/train_step.py [--repeats N] [--quick] [--no-savings] [--workdir DIR] [--report FILE.json]

Both programs have the same weights (through the converters), batch, optimizer, threads and float32; loss and every
gradient must agree before anything is timed. Each program is a process of its own, warmed up; then they take turns, one
step each, `repeats` times, so that what else the machine does falls on all alike. Ratios are taken within a turn.
Prints tables in Markdown and writes a JSON report.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.worker import Worker, environment  # noqa: E402

TORCH, OURS = "PyTorch loop", "ours"
FULL = "without micro-batches"
LEFT_OUT = {  # a saving left out, and the variant that it is compared with
    "towers once": ("towers in both passes", OURS),
    "column norms once": ("norms in every micro-batch", OURS),
    "shared images": ("images not shared", OURS),
    "packed rows": ("images not shared, one example per row", "images not shared"),
    "all four": ("none of the four", OURS),
}
AGREEMENT = 1e-4  # of loss and of each gradient, relative
LIBRARIES = ("jax", "jaxlib", "flax", "torch", "transformers", "peft", "numpy")


class Benchmark:
    """One run: its folder, processes and figures."""

    def __init__(self, workdir: Path, quick: bool, threads: int):
        self.workdir, self.quick, self.threads = workdir, quick, threads
        self.case = workdir / ("case_quick" if quick else "case")
        self.turns: list[dict[str, dict]] = []
        self.facts: dict[str, dict] = {}
        self.peaks: dict[str, float] = {}

    def prepare(self) -> None:
        if not self.case.is_dir():
            command = [sys.executable, "-m", "benchmarks.case", "--out", str(self.case), *["--quick"] * self.quick]
            subprocess.run(command, env=environment(self.threads), check=True, stdout=subprocess.DEVNULL)

    def start(self, names: list[str]) -> list[Worker]:
        """Warmed up, one after another (compilation takes memory); the two of the quick case together."""
        workers = []
        for name in names:
            workers.append(self._worker(name))
            if not self.quick:
                workers[-1].wait()
        for worker in workers:
            if not worker.facts:
                worker.wait()
            self.facts[worker.name] = worker.facts
        return workers

    def _worker(self, name: str) -> Worker:
        stem = name.replace(" ", "_").replace(",", "")
        module, arguments = "benchmarks.torch_loop", ["--threads", self.threads]
        if name != TORCH:
            module, arguments = "benchmarks.our_step", ["--variant", name]
        gradients = ["--gradients", self._gradients(name)] if name in (TORCH, OURS) else []
        print(f"... {name}", file=sys.stderr, flush=True)
        log = self.workdir / f"{stem}.log"
        return Worker(name, module, ["--case", self.case, *arguments, *gradients], log, self.threads)

    def _gradients(self, name: str) -> Path:
        return self.workdir / f"gradients_{'torch' if name == TORCH else 'ours'}.npz"

    def agreement(self) -> dict:
        """Relative differences of the loss and of each gradient, and of all gradients as one vector.

        Raises:
            SystemExit: they do not agree.
        """
        ours, theirs = (dict(np.load(self._gradients(name))) for name in (OURS, TORCH))
        if ours.keys() != theirs.keys():
            raise SystemExit(f"not the same parameters train: {sorted(ours.keys() ^ theirs.keys())}")
        errors = {name: relative(ours[name], theirs[name]) for name in ours}
        loss = errors.pop("loss")
        whole = relative(*(np.concatenate([x[name].ravel() for name in errors]) for x in (ours, theirs)))
        worst = max(errors, key=errors.get)
        found = {"loss": loss, "gradient": whole, "worst": errors[worst], "worst_name": worst, "tensors": len(errors)}
        if max(loss, errors[worst]) > AGREEMENT:
            raise SystemExit(f"the programs do not agree to {AGREEMENT}: {found}")
        return found

    def take_turns(self, workers: list[Worker], repeats: int) -> None:
        for number in range(repeats):
            self.turns.append({worker.name: worker.step() for worker in workers})
            seconds = ", ".join(f"{name} {figures['wall_s']:.2f} s" for name, figures in self.turns[-1].items())
            print(f"turn {number + 1}/{repeats}: {seconds}; load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)

    def stop(self, workers: list[Worker]) -> None:
        for worker in workers:
            self.peaks[worker.name] = worker.stop()["peak_gib"]

    def ratio(self, name: str, reference: str, what: str) -> dict[str, float]:
        """Median, least and largest over the turns of name's figure over reference's in the same turn."""
        return spread([turn[name][what] / turn[reference][what] for turn in self.turns])

    def report(self, agreement: dict) -> dict:
        programs = {
            name: {
                "wall_s": spread([turn[name]["wall_s"] for turn in self.turns]),
                "cpu_s": spread([turn[name]["cpu_s"] for turn in self.turns]),
                "peak_gib": self.peaks[name],
                **self.facts[name],
            }
            for name in self.peaks
        }
        present = {saving: pair for saving, pair in LEFT_OUT.items() if pair[0] in programs}
        return {
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {self.threads} threads",
            "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
            "size": "quick" if self.quick else "full",
            "load_at_the_end": os.getloadavg()[0],
            "agreement": agreement,
            "programs": programs,
            "pytorch_over_ours": {
                name: {what: self.ratio(TORCH, name, what) for what in ("wall_s", "cpu_s")}
                | {"peak": self.peaks[TORCH] / self.peaks[name]}
                for name in (OURS, FULL)
                if name in programs
            },
            "savings": {
                saving: {what: self.ratio(*pair, what) for what in ("wall_s", "cpu_s")}
                | {"peak": self.peaks[pair[0]] / self.peaks[pair[1]]}
                for saving, pair in present.items()
            },
            "turns": self.turns,
        }


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise SystemExit(f"shapes differ: {ours.shape} and {theirs.shape}")
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def tables(report: dict) -> str:
    lines = ["| program | s per step | CPU s | peak GiB | rows | row efficiency |", "|---|---|---|---|---|---|"]
    for name, x in report["programs"].items():
        rows = " + ".join(x.get("rows", {}).values()) or "padded chunks of 2"
        full = f"{x['row_efficiency']:.2f}" if "row_efficiency" in x else "-"
        lines.append(f"| {name} | {_told(x['wall_s'])} | {_told(x['cpu_s'])} | {x['peak_gib']:.2f} | {rows} | {full} |")
    ratios = [(f"{TORCH} / {name}", x) for name, x in report["pytorch_over_ours"].items()]
    ratios += [(f"without {saving} / with", x) for saving, x in report["savings"].items()]
    lines += ["", "| ratio | seconds | CPU seconds | peak memory |", "|---|---|---|---|"]
    lines += [f"| {name} | {_told(x['wall_s'])} | {_told(x['cpu_s'])} | {x['peak']:.2f} |" for name, x in ratios]
    return "\n".join(lines)


def _told(x: dict[str, float]) -> str:
    return f"{x['median']:.2f} ({x['least']:.2f}-{x['most']:.2f})"


def run(workdir: Path, repeats: int, quick: bool, threads: int, savings: bool = True) -> dict:
    """The whole benchmark, or without the variants of our step that leave a saving out; the report."""
    benchmark = Benchmark(workdir, quick, threads)
    benchmark.prepare()
    names = [TORCH, OURS] if quick else [TORCH, OURS, FULL]
    names += [variant for variant, _ in LEFT_OUT.values()] if savings and not quick else []
    workers = benchmark.start(names)
    try:
        agreement = benchmark.agreement()
        benchmark.take_turns(workers, repeats)
        benchmark.stop(workers)
    finally:
        for worker in workers:
            worker.process.kill()
    return benchmark.report(agreement)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a small case and the two programs alone")
    parser.add_argument("--no-savings", action="store_true", help="not what each saving gives")
    parser.add_argument("--workdir", type=Path, help="keeps model, inputs and logs; default: a temporary folder")
    parser.add_argument("--report", type=Path, help="JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="virtue_jax_benchmark_") as temporary:
        workdir = (arguments.workdir or Path(temporary)).absolute()
        workdir.mkdir(parents=True, exist_ok=True)
        report = run(workdir, arguments.repeats, arguments.quick, arguments.threads, not arguments.no_savings)
    if arguments.report:
        arguments.report.write_text(json.dumps(report, indent=2) + "\n")
    agreement = report["agreement"]
    print(f"{report['machine']}, load {report['load_at_the_end']:.1f}, {arguments.repeats} turns; {report['versions']}")
    print(
        f"loss agrees to {agreement['loss']:.1e}, the gradient to {agreement['gradient']:.1e}, the worst of "
        f"{agreement['tensors']} tensors to {agreement['worst']:.1e} ({agreement['worst_name']})\n"
    )
    print(tables(report))


if __name__ == "__main__":
    main()
