"""What has to be measured on a GPU, by one command: parity with PyTorch, attention kernels, a training run.

    PYTHONPATH=tests python -m gpu.check --workdir DIR [--size 2b] [--steps 50] [--only parity,attention,training]

On a machine with one NVIDIA GPU of 80 GB (for `2b`), `pip install -e '.[gpu,test]'` and a PyTorch with CUDA. Writes
DIR/gpu_check.json and DIR/gpu_check.md (the tables for BENCHMARKS.md); ends with status 1 where parity fails or the
loss does not fall. `--tiny` runs the same code on a CPU with tiny shapes, where no figure means anything.
"""

import argparse
import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from full_size.compare import STAGES, measured_process
from gpu import parity, training

PARTS = ("parity", "attention", "training")
LIBRARIES = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "torch", "transformers")


def measure(workdir: Path, size: str, steps: int, parts: tuple[str, ...], tiny: bool) -> dict:
    """All figures. Training at a published size needs the model directory that parity makes."""
    workdir, device = workdir.absolute(), "cpu" if tiny else "cuda"
    workdir.mkdir(parents=True, exist_ok=True)
    report: dict = {"size": size, "tiny": tiny, "versions": versions()}
    if "parity" in parts:
        report["parity"] = parity.compare(workdir / "parity", size, device)
    if "attention" in parts:
        out = workdir / "attention.json"
        command = ["gpu.attention_speed", "--out", str(out), *(["--tiny"] if tiny else [])]
        measured_process(command, workdir / "attention.txt", {"JAX_PLATFORMS": device})
        report["attention"] = json.loads(out.read_text())
    if "training" in parts:
        model = None if size == "tiny" else workdir / "parity/model"
        if model is not None and not model.is_dir():
            raise SystemExit(f"{model}: no such model directory; run the part `parity` first, in the same workdir")
        report["training"] = training.train(workdir / "training", size, steps, device, model)
    return report


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def passes(report: dict) -> bool:
    """Whether what was measured is right: parity in both dtypes, and a loss that falls."""
    same = report.get("parity", {"float32_agrees": True, "bfloat16_agrees": True})
    fell = report.get("training", {"loss_fell": True})["loss_fell"]
    return same["float32_agrees"] and same["bfloat16_agrees"] and fell


def markdown(report: dict) -> str:
    """The tables, with device and versions."""
    device = report.get("attention", {}).get("device", "device not asked for")
    said = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [f"{device}; {said}."]
    if report["tiny"]:
        lines.append("`--tiny`: on a CPU, only to run the code; these figures mean nothing.")
    for part, table in (("parity", _parity), ("attention", _attention), ("training", _training)):
        if part in report:
            lines += ["", *table(report[part])]
    return "\n".join(lines) + "\n"


def _parity(found: dict) -> list[str]:
    names = list(found["against_torch_float32"])
    lines = [f"| stage, against PyTorch float32 | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for stage in STAGES:
        cells = [f"{found['against_torch_float32'][name][stage]['relative']:.1e}" for name in names]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    return lines


def _attention(found: dict) -> list[str]:
    lines = ["| case | backend | forward ms | TFLOP/s | with backward ms | TFLOP/s |", "|---|---|---|---|---|---|"]
    for case, backends in found["cases"].items():
        for backend, x in backends.items():
            if "failed" in x:
                lines.append(f"| {case} | {backend} | {x['failed']} | | | |")
                continue
            cells = (x["forward_ms"], x["forward_tflops"], x["both_ms"], x["both_tflops"])
            lines.append(f"| {case} | {backend} | {' | '.join(f'{cell:.3g}' for cell in cells)} |")
    return lines


def _training(found: dict) -> list[str]:
    lines = ["| training run | |", "|---|---|"]
    lines += [f"| {name} | {_shown(value)} |" for name, value in found.items() if not isinstance(value, dict | list)]
    lines += ["", "| kernel | ms | calls | share |", "|---|---|---|---|"]
    for x in found["top_kernels"]:
        lines.append(f"| `{x['kernel'][:80]}` | {x['milliseconds']:.2f} | {x['calls']} | {x['share']:.1%} |")
    return lines


def _shown(value) -> str:
    return "not known" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--size", choices=("2b", "tiny"), default="2b")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, tiny shapes")
    arguments = parser.parse_args()
    parts = tuple(arguments.only.split(","))
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only {arguments.only}: {sorted(unknown)} are not among {', '.join(PARTS)}")
    size = "tiny" if arguments.tiny else arguments.size
    report = measure(arguments.workdir, size, 8 if arguments.tiny else arguments.steps, parts, arguments.tiny)
    (arguments.workdir / "gpu_check.json").write_text(json.dumps(report, indent=2) + "\n")
    (arguments.workdir / "gpu_check.md").write_text(markdown(report))
    print(markdown(report))
    print("passes" if passes(report) else "FAILS: see gpu_check.json")
    return 0 if passes(report) else 1


if __name__ == "__main__":
    sys.exit(main())
