"""Whether two checkouts compile the same step for a TPU pod: `python -m benchmarks.same_programs --before DIR`.

Each checkout lowers the stages of a run in a process of its own, from shapes alone; their texts are compared. Equal
texts give the same FLOPs, collectives and memory from the same compiler. What kernels carry with them is compared
apart: their payload names lines of source, so that it differs wherever a line has moved.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAYLOAD = re.compile(r'backend_config = (?:"(?:[^"\\]|\\.)*"|\{[^}]*\})')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--before", type=Path, help="the other checkout, with a .venv of its own or of the same packages"
    )
    parser.add_argument("--config", default="configs/virtue_2b_scar.py:large")
    parser.add_argument("--topology", nargs="+", default=["v5e:16x16", "v5p:4x4x4"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print_digests(args.config, args.child)
        return
    for topology in args.topology:
        before, after = (digests(root, args.config, topology) for root in (args.before, ROOT))
        for (stage, lines, text, whole), (_, _, other, other_whole) in zip(before, after, strict=True):
            same = "same to the byte" if whole == other_whole else "same but for payloads of kernels"
            print(f"{topology} {stage}: {lines} lines, {same if text == other else 'DIFFERENT'}", flush=True)


def digests(root: Path, config: str, topology: str) -> list[list[str]]:
    """[stage, lines, digest without payloads, digest with them] of each stage, as `root` lowers it."""
    python = root / ".venv/bin/python"
    line = [python if python.exists() else sys.executable, __file__, "--config", config, "--child", topology]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    run = subprocess.run(line, cwd=root, env=environment, capture_output=True, text=True, check=True)
    return [line.split()[1:] for line in run.stdout.splitlines() if line.startswith("STAGE ")]


def print_digests(config: str, topology: str) -> None:
    from virtue_jax.aot import report
    from virtue_jax.cli.main import main as virtue

    try:
        from virtue_jax.train.step.programs import trace_stages
    except ImportError:  # where it was before
        from virtue_jax.train.stages import trace_stages

    def lower(run, *_, **__):
        for stage, traced in trace_stages(run).items():
            text = traced.lower().as_text()
            bare = PAYLOAD.sub("", text)
            hashes = (hashlib.sha256(part.encode()).hexdigest() for part in (bare, text))
            print("STAGE", stage, len(text.splitlines()), *hashes)
        sys.exit()

    report.compile_step = lower
    virtue(["compile", "--config", config, "--topology", topology])


if __name__ == "__main__":
    main()
