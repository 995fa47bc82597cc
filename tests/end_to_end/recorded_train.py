"""`virtue train ...` that also writes down what each finished step was made of: WORKDIR/consumed-PROCESS.jsonl.

A step that a killed process did and its successor does again is there twice.
"""

import functools
import json
import sys
from pathlib import Path

FILE = "consumed-{}.jsonl"


def main(argv: list[str]) -> None:
    import jax

    import virtue_jax.train.loop as loop
    from virtue_jax.cli.main import main as virtue

    workdir = Path(argv[argv.index("--workdir") + 1])

    def record(step: int, batch) -> None:
        with (workdir / FILE.format(jax.process_index())).open("a") as file:
            file.write(json.dumps({"step": step, "origins": batch.report.origins}) + "\n")

    loop.train = functools.partial(loop.train, seen=record)
    virtue(["train", *argv])


def consumed(workdir: Path, process: int = 0) -> dict[int, list]:
    """{step: origins by row group and row}. A step that was done again with other data is an error."""
    steps: dict[int, list] = {}
    for line in (workdir / FILE.format(process)).read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # half a line, of a process that was killed
            continue
        if steps.setdefault(record["step"], record["origins"]) != record["origins"]:
            raise AssertionError(f"{workdir}: step {record['step']} was repeated with other data")
    return steps


if __name__ == "__main__":
    main(sys.argv[1:])
