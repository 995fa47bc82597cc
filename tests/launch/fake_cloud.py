#!/usr/bin/env -S python3 -SE
"""Stands in for gcloud, git, virtue, sbatch, srun, scontrol, scancel, kubectl and xpk: it is linked under their names.

Every call is a line of $FAKES/calls.jsonl. gcloud keeps one queued resource whose workers are folders of this machine:
`ssh` really runs its command in them, `scp` copies. What happens to it is in $FAKES/plan.json:
    workers   how many (1)
    lives     by creation: looks at it while ACTIVE before it is preempted; null = never
    silences  how many of its looks at the resource fail, at first (0)
    refusals  {part of a command: how often `ssh` fails on it}
    ends      by start of the run: exit status of each worker's `virtue train`; "hangs" = runs until it is ended;
              "warns" = the same, and SLURM warns the job that its time is up
    last      the worker that ends when all others have
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(os.environ.get("FAKES", "."))
TREE = Path(__file__).resolve().parents[2]
REALIZED = ("NONE", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")


def main() -> int:
    name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    home = Path(os.environ["HOME"]).name
    call = {"program": name, "arguments": arguments, "home": home, "folder": os.getcwd()}
    if name == "kubectl":
        call["input"] = sys.stdin.read()
    call |= {key: os.environ.get(key, "") for key in ("LIBTPU_INIT_ARGS", "XLA_FLAGS", "JAX_LOCAL_DEVICE_IDS")}
    with (HERE / "calls.jsonl").open("a") as file:
        file.write(json.dumps(call) + "\n")
    programs = {"gcloud": gcloud, "git": git, "virtue": virtue, "sbatch": sbatch, "srun": srun, "scancel": scancel}
    return programs.get(name, quiet)(arguments)


def plan(key: str, default):
    file = HERE / "plan.json"
    return (json.loads(file.read_text()) if file.exists() else {}).get(key, default)


def counted(name: str) -> int:
    """How often this was asked before."""
    file = HERE / name
    count = int(file.read_text()) if file.exists() else 0
    file.write_text(str(count + 1))
    return count


def quiet(_arguments: list[str]) -> int:
    return 0


def gcloud(arguments: list[str]) -> int:
    verb = arguments[arguments.index("queued-resources") + 1]
    return {"create": create, "describe": describe, "delete": delete, "ssh": ssh, "scp": scp}[verb](arguments)


def create(_arguments: list[str]) -> int:
    counted("creations")
    (HERE / "state").write_text("WAITING_FOR_RESOURCES")
    (HERE / "looks").unlink(missing_ok=True)
    for home in homes():
        home.mkdir()
    return 0


def homes() -> list[Path]:
    life = int((HERE / "creations").read_text()) - 1
    return [HERE / f"life{life}-worker{worker}" for worker in range(plan("workers", 1))]


def describe(_arguments: list[str]) -> int:
    if counted("silent-looks") < plan("silences", 0):
        print("ERROR: (gcloud) the service is unavailable", file=sys.stderr)
        return 1
    if not (HERE / "state").exists():
        print("ERROR: (gcloud) NOT_FOUND: no such queued resource", file=sys.stderr)
        return 1
    state = (HERE / "state").read_text()
    print(state)
    if state in REALIZED[1:3]:
        (HERE / "state").write_text(REALIZED[REALIZED.index(state) + 1])
    elif state == "ACTIVE":
        life = plan("lives", [None])[int((HERE / "creations").read_text()) - 1]
        if life is not None and counted("looks") + 1 >= life:
            end_all()
            (HERE / "state").write_text("SUSPENDED")
    return 0


def delete(_arguments: list[str]) -> int:
    end_all()
    (HERE / "state").unlink()
    return 0


def end_all() -> None:
    for home in homes():
        for file in (home / "virtue_run/supervisor", home / "virtue_run/process"):
            with contextlib.suppress(OSError):
                os.kill(int(file.read_text()), signal.SIGKILL)


def ssh(arguments: list[str]) -> int:
    command = next(a for a in arguments if a.startswith("--command=")).removeprefix("--command=")
    for part, times in plan("refusals", {}).items():
        if part in command and counted("refused-" + part.replace("/", "-")) < times:
            print("ERROR: (gcloud) ssh failed", file=sys.stderr)
            return 1
    worst = 0
    for home in homes() if "--worker=all" in arguments else homes()[:1]:
        if command.endswith("on_worker.sh install"):
            (home / "virtue_env/bin").mkdir(parents=True, exist_ok=True)
            (home / "virtue_env/bin/virtue").unlink(missing_ok=True)
            (home / "virtue_env/bin/virtue").symlink_to(__file__)
        elif " mount " not in command:
            done = subprocess.run(["bash", "-c", command], cwd=home, env=os.environ | {"HOME": str(home)}, check=False)
            worst = max(worst, done.returncode)
    return worst


def scp(arguments: list[str]) -> int:
    file = arguments[arguments.index("scp") + 1]
    for home in homes():
        shutil.copy(file, home)
    return 0


def git(arguments: list[str]) -> int:
    """Of the work tree, committed or not, what a launcher's test needs."""
    if "archive" in arguments:
        out = next(a for a in arguments if a.startswith("--output=")).removeprefix("--output=")
        return subprocess.run(
            ["tar", "-czf", out, "-C", str(TREE), "launch", "virtue_jax/exit_status.py"], check=False
        ).returncode
    return 0


def virtue(arguments: list[str]) -> int:
    if arguments[0] == "flags":
        print(f"--flag_of_{arguments[1]}=true")
        return 0
    me = int(os.environ.get("SLURM_PROCID") or Path(os.environ["HOME"]).name.partition("worker")[2])
    end = plan("ends", [])[counted(f"starts-{me}")][me]
    print(f"worker {me} ends: {end}", flush=True)
    if end == "warns":
        os.kill(int((HERE / "job").read_text()), signal.SIGUSR1)
    if end in ("hangs", "warns"):
        (HERE / f"task-{me}").write_text(str(os.getpid()))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        while True:
            time.sleep(0.05)
    if me == plan("last", None):
        others = [home for number, home in enumerate(homes()) if number != me]
        while not all((home / "virtue_run/status").exists() for home in others):
            time.sleep(0.02)
    return end


def sbatch(arguments: list[str]) -> int:
    """Runs the script at once, as job 7."""
    at = next(i for i, argument in enumerate(arguments) if argument.endswith(".sbatch"))
    job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(plan("restarts", 0)), "SLURM_SUBMIT_DIR": os.getcwd()}
    job |= {"SLURM_NTASKS": str(plan("workers", 1))}
    script = subprocess.Popen(["bash", *arguments[at:]], env=os.environ | job)
    (HERE / "job").write_text(str(script.pid))
    return script.wait()


def scancel(_arguments: list[str]) -> int:
    """Tells the tasks, each when it is there."""
    for number in range(plan("workers", 1)):
        file = HERE / f"task-{number}"
        while not file.exists() or not file.read_text():
            time.sleep(0.02)
        time.sleep(0.1)
        os.kill(int(file.read_text()), signal.SIGTERM)
    return 0


def srun(arguments: list[str]) -> int:
    begin = next(i for i, argument in enumerate(arguments) if not argument.startswith("-"))
    tasks = [
        subprocess.Popen(
            arguments[begin:], env=os.environ | {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}
        )
        for number in range(int(os.environ["SLURM_NTASKS"]))
    ]
    return max(task.wait() for task in tasks)


if __name__ == "__main__":
    sys.exit(main())
