"""Worker processes outlive signals to their process group, and not their loader or their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing
import os
import signal
import sys
import threading
import time
from words import Words, make_encoder, words_loader

def main():
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    loader = words_loader(make_encoder(sys.argv[1]), Words(30), streams=2, worker_count=2, prefetch=1)
    if sys.argv[2] == "early":
        first = threading.Thread(target=loader.__next__)
        first.start()
        while len(multiprocessing.active_children()) < 2:
            time.sleep(0.01)
        os.killpg(0, signal.SIGTERM)
        first.join()
    for number in (signal.SIGTERM, signal.SIGINT):
        next(loader)
        os.killpg(0, number)
    for _ in range(5):
        next(loader)
    children = multiprocessing.active_children()
    assert len(children) == 2
    print(*(child.pid for child in children), flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    loader.close()
    assert not multiprocessing.active_children()
    print("closed")

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["early", "killed"])
def test_workers_ignore_signals_of_the_group_and_end_with_loader_or_parent(golden, tmp_path, how):
    (tmp_path / "script.py").write_text(SCRIPT)
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(golden), how],
        env=os.environ | {"PYTHONPATH": str(here)},
        cwd=here.parents[2],
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "stderr").open("w"),
        text=True,
        timeout=180,
        start_new_session=True,
    )
    said, errors = done.stdout.split(), (tmp_path / "stderr").read_text()[-2000:]
    expected = (3, 0) if how == "early" else (2, -signal.SIGKILL)
    assert (len(said), done.returncode) == expected, errors
    deadline = time.monotonic() + 20
    while any(_running(int(pid)) for pid in said[:2]):
        assert time.monotonic() < deadline, f"workers {said[:2]} are still there"
        time.sleep(0.1)


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
