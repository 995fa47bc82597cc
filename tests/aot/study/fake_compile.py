"""A program with the interface of `virtue compile`, which is quick, and fails, dawdles and eats memory as it is told.

What it is told comes as `--config.fake.WHAT=VALUE`; every start and end is a line in the file $FAKE_LOG.
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from fake_reports import fake_report

from virtue_jax.exit_status import DOES_NOT_FIT


def main() -> int:
    given, words = {}, iter(sys.argv[1:])
    for word in words:
        name, has_value, value = word.removeprefix("--").partition("=")
        given[name] = value if has_value else next(words)
    fake = {name.removeprefix("config.fake."): value for name, value in given.items() if "config.fake." in name}
    note(f"start {given['topology']} {given['batch']} {os.getpid()}")
    ballast = bytearray(int(fake.get("mib", 0)) << 20)
    ballast[::4096] = b"x" * len(ballast[::4096])
    time.sleep(float(fake.get("seconds", 0)))
    while Path(os.environ.get("FAKE_LOG", os.devnull)).read_text().count("start") < int(fake.get("started", 0)):
        time.sleep(0.01)
    while "gate" in fake and not Path(fake["gate"]).exists():
        time.sleep(0.01)
    if "fail" in fake:
        print("compiling ...")
        print(f"virtue compile: {fake['fail']}", file=sys.stderr)
        return int(fake.get("status", 2))
    mesh = {axis: int(size) for axis, size in (each.split("=") for each in given.get("mesh", "data=-1").split(","))}
    overrides = {name.removeprefix("config."): value for name, value in given.items() if name.startswith("config.")}
    report = fake_report(
        given["config"],
        given["topology"],
        int(given["batch"]),
        slices=int(given.get("slices", 1)),
        mesh=mesh,
        overrides=overrides,
        effort=given.get("effort", "full"),
    )
    text = json.dumps(report)
    Path(given["json"]).write_text(text[: len(text) // 2] if "half" in fake else text)
    note(f"end {given['topology']} {given['batch']} {os.getpid()}")
    return 0 if report["fits"] else DOES_NOT_FIT


def note(line: str) -> None:
    if "FAKE_LOG" in os.environ:
        with open(os.environ["FAKE_LOG"], "a") as log:
            log.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
