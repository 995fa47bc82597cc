"""python -m benchmarks.sam_resize (in tests/): CPU milliseconds to resize one image for SAM-2, and how far they differ.

"exact" is what the float32 path computes with, rounded to grey levels; "levels" is what the uint8 path takes.
"""

import time

import numpy as np

from virtue_jax.data.encoding.sam_image import resize, sam_levels

SIZE, REPEATS = 1024, 7
SHAPES = ((240, 320), (480, 640), (768, 1024), (1080, 1920), (3000, 4000))  # (height, width)


def exact_levels(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(resize(pixels.astype(np.float32), SIZE, SIZE)), 0, 255).astype(np.uint8)


def milliseconds(resized, pixels: np.ndarray) -> float:
    """CPU time of the fastest of several runs, in this thread."""
    times = []
    for _ in range(REPEATS):
        start = time.thread_time()
        resized(pixels)
        times.append(time.thread_time() - start)
    return 1000 * min(times)


def main() -> None:
    random = np.random.default_rng(0)
    print(f"{'image':>10}  {'exact ms':>8}  {'levels ms':>9}  {'largest':>7}  {'mean difference':>15}")
    for height, width in SHAPES:
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        exact = milliseconds(exact_levels, pixels)
        fast = milliseconds(lambda pixels: sam_levels(pixels, SIZE), pixels)
        apart = np.abs(exact_levels(pixels).astype(int) - sam_levels(pixels, SIZE))
        print(f"{width}x{height:<5}  {exact:8.1f}  {fast:9.1f}  {apart.max():7d}  {apart.mean():15.4f}")


if __name__ == "__main__":
    main()
