"""200 mixed inputs embedded: wall and CPU seconds and programs compiled, at the first and at the second start.

    python tests/benchmarks/embed_mixed.py --model DIR [--python PYTHON] [--count 200] [--photos] [--starts 2]

Each start is a process of its own, with the compiled programs of the one before where the version keeps them (an empty
folder at first). --python: of another check-out, for its figures; the model directory must be one that it reads.
--photos: photos alone, 100 to 1500 pixels, some with boxes and points.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = 50

START = """
import json, os, sys, time
begin = time.time()
import jax
try:
    from virtue_jax.compilation_cache import use_compilation_cache
    use_compilation_cache()
except ImportError:
    pass
try:
    from virtue_jax.embedding.embedder import Embedder
except ImportError:
    from virtue_jax.embedder import Embedder
programs, hits = [], []
def duration(event, seconds, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        programs.append(seconds)
jax.monitoring.register_event_duration_secs_listener(duration)
jax.monitoring.register_event_listener(lambda event, **_: hits.append(1) if event.endswith("/cache_hits") else None)
embedder = Embedder.load(sys.argv[1], compat="paper")
loaded = time.time()
embeddings = embedder.embed([json.loads(line) for line in open(sys.argv[2])])
end, used = time.time(), os.times()
print(json.dumps({
    "wall s": end - begin, "of it load": loaded - begin, "CPU s": used.user + used.system,
    "programs": len(programs), "of it read": len(hits), "compile or read s": sum(programs),
    "checksum": float(abs(embeddings).sum()),
}))
"""


def write_inputs(folder: Path, count: int, photos: bool) -> Path:
    """Pictures of SIZES sizes with boxes, points, masks or nothing, and every fifth line a text alone."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 1501, (SIZES, 2))
    lines = []
    for i in range(count):
        if not photos and i % 5 == 4:
            lines.append({"text": f"a caption, number {i}, " + "word " * int(rng.integers(1, 60))})
            continue
        width, height = map(int, sizes[i % SIZES] if not photos else rng.integers(100, 1501, 2))
        coarse = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8))
        coarse.resize((width, height)).save(folder / f"{i}.jpg")
        line = {"image": str(folder / f"{i}.jpg"), "text": "What is this?"}
        kind = i % 4
        if kind == 0:
            line["box"] = [width // 4, height // 4, width // 2, height // 2]
        elif kind == 1:
            line["points"] = [[width // 3, height // 3, 1], [5, 5, 0]][: 1 + i % 2]
        elif kind == 2 and not photos:
            mask = np.zeros((height, width), np.uint8)
            mask[height // 4 : height // 2, width // 4 : width // 2] = 255
            Image.fromarray(mask).save(folder / f"{i}.png")
            line["mask"] = str(folder / f"{i}.png")
        lines.append(line)
    file = folder / "inputs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--photos", action="store_true")
    parser.add_argument("--starts", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        inputs = write_inputs(Path(folder), arguments.count, arguments.photos)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
        environment |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": folder, "HF_HUB_OFFLINE": "1"}
        for start in range(1, arguments.starts + 1):
            command = [arguments.python, "-c", START, arguments.model, str(inputs)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd="/")
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            figures = json.loads(done.stdout.splitlines()[-1])
            print(f"start {start}:", {name: round(value, 2) for name, value in figures.items()}, flush=True)


if __name__ == "__main__":
    main()
