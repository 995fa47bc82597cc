"""A training run of `virtue train` on drawn scenes: loss, pace, MFU, memory, and the kernels that took its time."""

import json
from collections import Counter
from pathlib import Path

import jax
import numpy as np
from full_size.compare import measured_process

RUN_FILE = Path(__file__).with_name("run_file.py")
SCENES = {  # arguments of `virtue scenes`; 2b: native resolution up to 1,280 vision tokens
    "2b": ["--train", "600", "--eval", "1", "--width", "640", "1280", "--height", "480", "784"],
    "tiny": ["--train", "12", "--eval", "1", "--width", "64", "64", "--height", "64", "64", "--objects", "2", "3"],
}
ENDS = 5  # steps at each end that the loss is averaged over
TOP = 15
GPU_PLANE, GPU_LINE = "/device:GPU", "Stream"


def train(root: Path, size: str, steps: int, platform: str, model: Path | None) -> dict:
    """Runs it and reads what it wrote. model: the model directory of size "2b".

    Raises:
        SystemExit: the run failed, with the end of its output.
    """
    scenes, workdir = root / "scenes", root / "run"
    root.mkdir(parents=True, exist_ok=True)
    if not scenes.exists():
        command = ["gpu.virtue", "scenes", "--out", str(scenes), *SCENES[size]]
        measured_process(command, root / "scenes.txt")
    values = {"steps": steps, "data.sources.scenes.path": scenes} | ({"model.directory": model} if model else {})
    command = ["gpu.virtue", "train", "--config", f"{RUN_FILE}:{size}", "--workdir", str(workdir)]
    command += [f"--config.{name}={value}" for name, value in values.items()]
    # A tiny run is compiled in a hurry: it only has to work.
    flags = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} if size == "tiny" else {}
    process = measured_process(command, root / "train.txt", {"JAX_PLATFORMS": platform} | flags)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return summary(records) | {"process": process, "top_kernels": top_kernels(workdir / "profile")}


def summary(records: list[dict]) -> dict:
    """Of the steps' records (`metrics.jsonl`). The pace is the median: single steps save or are traced."""
    loss = [record["loss"] for record in records]
    ends = min(ENDS, max(1, len(loss) // 2))
    first, last = float(np.mean(loss[:ends])), float(np.mean(loss[-ends:]))
    found = {"steps": len(records), "loss_first": first, "loss_last": last, "loss_fell": last < first}
    for name in ("seconds_per_step", "mfu", "model_tflops_per_second", "examples_per_second", "data_wait_seconds"):
        values = [record[name] for record in records if record.get(name) is not None]
        found[name] = float(np.median(values)) if values else None
    peaks = [r["device_memory_peak_gib"] for r in records if r.get("device_memory_peak_gib") is not None]
    return found | {"device_memory_peak_gib": max(peaks) if peaks else None}


def top_kernels(folder: Path) -> list[dict]:
    """[{"kernel", "milliseconds", "calls", "share"}] of the trace in `folder`: what the GPU's streams ran, or the
    operations of a CPU; the longest first.

    Raises:
        SystemExit: no trace, or one without operations.
    """
    files = sorted(folder.rglob("*.xplane.pb"))
    if not files:
        raise SystemExit(f"{folder}: no profiler trace; were config.profile_steps among the run's steps?")
    planes = list(jax.profiler.ProfileData.from_file(str(files[-1])).planes)
    time, calls = Counter(), Counter()
    for event in _operations([p for p in planes if p.name.startswith(GPU_PLANE)], planes):
        time[event.name] += event.duration_ns
        calls[event.name] += 1
    if not time:
        raise SystemExit(f"{files[-1]}: the trace holds no operations")
    total = sum(time.values())
    return [
        {"kernel": name, "milliseconds": ns / 1e6, "calls": calls[name], "share": ns / total}
        for name, ns in time.most_common(TOP)
    ]


def _operations(gpus, planes):
    if gpus:
        lines = [line for plane in gpus for line in plane.lines if line.name.startswith(GPU_LINE)]
        return [event for line in lines for event in line.events]
    events = [event for plane in planes for line in plane.lines for event in line.events]
    return [event for event in events if any(name == "hlo_op" for name, _ in event.stats)]
