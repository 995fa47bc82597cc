"""Every tower on the GPU against PyTorch on that GPU, in float32 and bfloat16, on random checkpoints of a size."""

from pathlib import Path

import numpy as np
from full_size.compare import RELATIVE, STAGES, difference, measured_process
from full_size.make_checkpoints import SAM2_FILE

from converters.connector import FILE_NAME as CONNECTOR_FILE

DTYPES = ("float32", "bfloat16")
# Both sides round to 8 bits in places of their own; an error twice PyTorch's is no longer explained by that.
BFLOAT16 = 2.0


def compare(root: Path, size: str, device: str) -> dict:
    """Figures of every process, and `judged` of their outputs. device: "cuda" or "cpu". What is made stays in `root`:
    checkpoints, `model` (a model directory in the checkpoints' dtypes), inputs.

    Raises:
        SystemExit: a process that failed, with the end of its output.
    """
    (root / "logs").mkdir(parents=True, exist_ok=True)
    figures = {}
    for name, made, command, environment in _processes(root, size, device):
        if not made.exists():
            print(f"... {name}", flush=True)
            figures[name] = measured_process([str(x) for x in command], root / f"logs/{made.stem}.txt", environment)
    outputs = {name: dict(np.load(root / f"{name}.npz")) for name in _outputs()}
    return {"size": size, "processes": figures} | judged(outputs)


def _outputs() -> list[str]:
    return [f"{library}_{dtype}" for library in ("jax", "torch") for dtype in DTYPES]


def _processes(root: Path, size: str, device: str):
    """(name, what it makes, arguments of `python -m`, environment), in order; JAX and PyTorch share no GPU memory."""
    checkpoints, model, inputs = root / "checkpoints", root / "model", root / "inputs"
    files = ["--vlm", checkpoints / "vlm", "--sam2", checkpoints / SAM2_FILE]
    files += ["--connector", checkpoints / CONNECTOR_FILE]
    yield "make checkpoints", checkpoints, ["full_size.make_checkpoints", "--out", checkpoints, "--size", size], {}
    yield "import", model, ["converters", "import", *files, "--out", model, "--dtype", "keep"], {}
    yield "inputs", inputs, ["full_size.example_input", "--model", model, "--out", inputs], {}
    ours = ["full_size.jax_stages", "--model", model, "--inputs", inputs, "--stages", "--attention", "auto"]
    theirs = ["full_size.torch_stages", "--checkpoints", checkpoints, "--inputs", inputs, "--device", device]
    # Otherwise XLA computes float32 products in TF32 on a GPU; PyTorch does not.
    exact = {"JAX_PLATFORMS": device, "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    for dtype in DTYPES:
        for name, command in (("jax", ours), ("torch", theirs)):
            out = root / f"{name}_{dtype}.npz"
            yield f"{name} {dtype}", out, [*command, "--dtype", dtype, "--out", out.with_suffix("")], exact


def judged(outputs: dict[str, dict[str, np.ndarray]]) -> dict:
    """Differences from PyTorch's float32 by stage, and whether they are rounding.

    outputs: {"jax_float32", "jax_bfloat16", "torch_float32", "torch_bfloat16": {stage: array}}.
    """
    reference = outputs["torch_float32"]
    found = {
        name: {stage: difference(outputs[name][stage], reference[stage]) for stage in STAGES}
        for name in _outputs()
        if name != "torch_float32"
    }
    same = all(x["relative"] <= RELATIVE for x in found["jax_float32"].values())
    pairs = [(found["jax_bfloat16"][s]["relative"], found["torch_bfloat16"][s]["relative"]) for s in STAGES]
    half = all(ours <= BFLOAT16 * theirs for ours, theirs in pairs)
    return {"against_torch_float32": found, "float32_agrees": bool(same), "bfloat16_agrees": bool(half)}
