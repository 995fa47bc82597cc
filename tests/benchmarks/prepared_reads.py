"""python -m benchmarks.prepared_reads --workdir DIR [--images N] (in tests/): elements a second, at random.

The same scenes as original files (parquet rows, a JPEG file an image) and as `virtue prepare` writes them, one pair an
element and up to 4 on one image; with the files in the page cache and, first, dropped from it.
"read" ends with the encoded bytes of every image in memory, "decode" with their pixels.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from virtue_jax.data.encoding.encode import image_key
from virtue_jax.data.encoding.images import load_image
from virtue_jax.data.example import PairSource, TrainingPair
from virtue_jax.data.formats.record_reader import PreparedTraining
from virtue_jax.data.formats.record_writer import prepare
from virtue_jax.data.formats.scar import ScarTraining
from virtue_jax.data.scenes import write_scenes
from virtue_jax.data.sources.shared_images import SharedImages


def images_of(element: TrainingPair | tuple[TrainingPair, ...]) -> Iterable[str | bytes]:
    pairs = (element,) if isinstance(element, TrainingPair) else element
    return {image_key(image): image for pair in pairs for image in pair.query.images}.values()


def read(image: str | bytes) -> int:
    return len(image if isinstance(image, bytes) else Path(image).read_bytes())


def decode(image: str | bytes) -> int:
    return load_image(image, "").size


def rate(source: PairSource, take: Callable, threads: int, order: list[int]) -> dict[str, int]:
    """Elements a second, and microseconds of CPU time for one."""
    start, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda row: [take(image) for image in images_of(source[row])], order, chunksize=16))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"per s": round(len(order) / seconds), "CPU us": round(cpu / len(order) * 1e6)}


def drop_from_cache(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def written(workdir: Path, images: int) -> tuple[Path, dict[str, PairSource]]:
    originals = workdir / "scenes"
    if not originals.exists():
        size = {"width": (640, 640), "height": (480, 480)}
        write_scenes(originals, train=images, eval=0, seed=0, image_format="jpg", **size)
    rows = ScarTraining(originals)
    return originals, {"a pair": rows, "pairs on one image": SharedImages(rows, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    originals, sources = written(args.workdir, args.images)
    for name, source in sources.items():
        folder = args.workdir / name.replace(" ", "_")
        if not folder.exists():
            folder.mkdir()
            start = time.perf_counter()
            made = prepare(source, folder)
            seconds = time.perf_counter() - start
            print(json.dumps({"prepared": name, "elements": made.elements, "MiB": made.bytes >> 20, "s": seconds}))
        order = list(range(len(source)))
        random.Random(0).shuffle(order)
        for threads in args.threads:
            for kind, place in (("files", originals), ("prepared", folder)):
                drop_from_cache(place)
                rates = {}
                for what, take in (("read, cold", read), ("read", read), ("decode", decode)):
                    opened = source if kind == "files" else PreparedTraining(folder)
                    opened[0]
                    rates[what] = rate(opened, take, threads, order)
                print(json.dumps({"element": name, "from": kind, "threads": threads} | rates), flush=True)


if __name__ == "__main__":
    main()
