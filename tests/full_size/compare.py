"""A full-size random VIRTUE: converted, loaded, one image embedded, compared with PyTorch; seconds and memory of all.

    PYTHONPATH=tests python -m full_size.compare --workdir DIR [--size 2b|tiny] [--clean] [--report FILE.json]

Every stage is a process of its own, so that JAX and PyTorch are never in memory together; a stage whose result is
already in the workdir is not run again. `2b` needs 20 GB of disk and 14 GiB of memory. Prints a table, writes a JSON
report, and ends with status 1 if the float32 outputs differ.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
from full_size.make_checkpoints import SAM2_FILE

from converters.connector import FILE_NAME as CONNECTOR_FILE

ROOT = Path(__file__).parents[2]
FOLDER = "virtue_full_size"  # everything lies in WORKDIR/FOLDER, which --clean removes
STAGES = ("image_embed", "fused_map", "segmentation_tokens", "vision_tokens", "hidden", "last_hidden", "embedding")
LIBRARIES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "torch", "transformers", "numpy")

# Float32 rounding, 6e-8, adds up over the 60 layers to a few 1e-6 of a stage's largest value (the tiny golden model:
# 1.5e-6 on the embedding with other float32 kernels). Ten times more than that is no longer rounding; a mistake moves
# the embedding by far more (reported: another object's box).
RELATIVE = 1e-4
COSINE = 0.999999


class Comparison:
    """One run: folders, commands and figures of its stages."""

    def __init__(self, workdir: Path, size: str):
        self.size = size
        self.root = workdir.absolute() / FOLDER
        self.checkpoints, self.inputs = self.root / "checkpoints", self.root / "inputs"
        self.processes = self.root / "processes.json"
        self.figures: dict[str, dict] = json.loads(self.processes.read_text()) if self.processes.is_file() else {}

    def stages(self) -> list[tuple[str, Path, list[str]]]:
        """(name, what it makes, arguments of `python -m`) of every stage, in order."""
        root, given = self.root, ["--inputs", self.inputs]
        keep, half, files = root / "model_keep", root / "model_bfloat16", self._files()
        jax_half, jax_full, torch_out = root / "jax_bfloat16", root / "jax_float32", root / "torch"
        make = ["full_size.make_checkpoints", "--out", self.checkpoints, "--size", self.size]
        convert = ["converters", "import", *files]
        example = ["full_size.example_input", "--model", keep, "--out", self.inputs]
        run = ["full_size.jax_stages", *given]
        torch = ["full_size.torch_stages", "--checkpoints", self.checkpoints, *given, "--out", torch_out]
        shapes = ["full_size.shapes", *given, "--size", "7b", "--out", root / "shapes.json"]
        stages = [
            ("make checkpoints", self.checkpoints, make),
            ("import --dtype bfloat16", half, [*convert, "--out", half, "--dtype", "bfloat16"]),
            ("import --dtype keep", keep, [*convert, "--out", keep, "--dtype", "keep"]),
            ("inputs", self.inputs, example),
            ("jax bfloat16", jax_half, [*run, "--model", half, "--dtype", "bfloat16", "--out", jax_half]),
            ("jax float32", jax_full, [*run, "--model", keep, "--dtype", "float32", "--stages", "--out", jax_full]),
            ("torch float32", torch_out, torch),
            ("7b, shapes only", root / "shapes", shapes),
        ]
        return [(name, made, [str(part) for part in command]) for name, made, command in stages]

    def _files(self) -> list:
        files = ["--vlm", self.checkpoints / "vlm", "--sam2", self.checkpoints / SAM2_FILE]
        return [*files, "--connector", self.checkpoints / CONNECTOR_FILE]

    def run(self) -> None:
        """Runs what is not there yet.

        Raises:
            SystemExit: a stage that failed, with the end of its output.
        """
        (self.root / "logs").mkdir(parents=True, exist_ok=True)
        for name, made, command in self.stages():
            if name in self.figures:
                continue
            if made.is_dir():
                shutil.rmtree(made)
            print(f"... {name}", flush=True)
            self.figures[name] = measured_process(command, self.root / "logs" / f"{made.stem}.txt")
            self.processes.write_text(json.dumps(self.figures, indent=2))

    def report(self) -> dict:
        """All figures and differences."""
        ours, theirs = dict(np.load(self.root / "jax_float32.npz")), dict(np.load(self.root / "torch.npz"))
        half = np.load(self.root / "jax_bfloat16.npz")["embedding"]
        with np.load(self.inputs / "batch.npz") as batch:
            same_positions = bool((batch["positions"][0] == theirs["positions"]).all())
        other = ours["other_prompt_last_hidden"]
        inside = {f.stem: json.loads(f.read_text()) for f in self.root.glob("*.json") if f != self.processes}
        return {
            "size": self.size,
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {memory_gib():.0f} GiB",
            "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
            "processes": self.figures,
            "inside": inside,
            "input": json.loads((self.inputs / "facts.json").read_text()),
            "positions_identical": same_positions,
            "float32_against_torch": {name: difference(ours[name], theirs[name]) for name in STAGES},
            "cosine_of_bfloat16_and_float32": cosine(half, ours["embedding"]),
            "cosine_with_another_prompt": cosine(other, ours["embedding"]),
        }


def measured_process(command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> dict[str, float]:
    """Runs `python -m command`; wall seconds, CPU seconds and peak resident memory of that process alone.

    environment: variables besides or in place of those that keep JAX on the CPU.

    (The kernel counts a child's peak from what its parent held when it was made; this process holds next to nothing.)
    """
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    on_a_cpu = {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    environment = os.environ | on_a_cpu | (environment or {})
    start = time.perf_counter()
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=log.parent
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = "\n".join(log.read_text().splitlines()[-20:])
        raise SystemExit(f"{' '.join(command)}\nended with status {process.returncode}:\n{tail}")
    return {
        "wall_s": round(time.perf_counter() - start, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gib": round(usage.ru_maxrss / 2**20, 2),
    }


def difference(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Largest absolute difference, the same relative to the largest value, and the cosine."""
    if ours.size != theirs.size:
        raise SystemExit(f"shapes differ: {ours.shape} and {theirs.shape}")
    theirs = theirs.reshape(ours.shape)
    most, scale = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
    return {"max_abs": most, "largest": scale, "relative": most / scale, "cosine": cosine(ours, theirs)}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def agrees(report: dict) -> bool:
    """Whether the float32 embedding is PyTorch's, from the same positions, and would not be with another prompt."""
    found = report["float32_against_torch"]["embedding"]
    close = found["relative"] <= RELATIVE and found["cosine"] >= COSINE
    return close and report["positions_identical"] and report["cosine_with_another_prompt"] < COSINE


def table(report: dict) -> str:
    lines = [f"{'stage':<26}{'wall s':>9}{'cpu s':>9}{'peak GiB':>10}"]
    for name, x in report["processes"].items():
        lines.append(f"{name:<26}{x['wall_s']:>9.1f}{x['cpu_s']:>9.1f}{x['peak_gib']:>10.2f}")
    lines += ["", f"{'float32, JAX - PyTorch':<26}{'max abs':>10}{'largest':>10}{'relative':>10}{'1 - cosine':>12}"]
    for name, x in report["float32_against_torch"].items():
        row = f"{x['max_abs']:>10.1e}{x['largest']:>10.3g}{x['relative']:>10.1e}{1 - x['cosine']:>12.1e}"
        lines.append(f"{name:<26}{row}")
    lines += ["", f"positions identical: {report['positions_identical']}"]
    for name in ("cosine_of_bfloat16_and_float32", "cosine_with_another_prompt"):
        lines.append(f"{name.replace('_', ' ')}: {report[name]:.6f}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--size", choices=("2b", "tiny"), default="2b")
    parser.add_argument("--report", type=Path, help="JSON; default WORKDIR/full_size_report.json")
    parser.add_argument("--clean", action="store_true", help="remove all that was made, but the report")
    arguments = parser.parse_args()
    comparison = Comparison(arguments.workdir, arguments.size)
    comparison.run()
    report = comparison.report()
    file = arguments.report or arguments.workdir / "full_size_report.json"
    file.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.clean:
        shutil.rmtree(comparison.root)
    print(table(report))
    verdict = agrees(report)
    print(f"{'agrees' if verdict else 'DIFFERS'} (embedding: relative {RELATIVE}, cosine {COSINE}); figures in {file}")
    return 0 if verdict else 1


if __name__ == "__main__":
    sys.exit(main())
