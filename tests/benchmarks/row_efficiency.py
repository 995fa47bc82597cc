"""python -m benchmarks.row_efficiency [--steps N] (in tests/): how full rows are on lengths like the published data's.

Packs made-up lengths (`virtue_jax/data/row_groups/published.py`) by the loader's rule into the row groups of
configs/, for batches of 1,024 dealt to 1, 8 and 16 streams and of 8,192 dealt to 1, 8 and 64 (the last are the run
files' own), and tells what padding costs instead: one example a row of fixed size; every side of a batch of 32 padded
to its longest (the released code).
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from configs.published import MMEB_ROWS, SCAR_ROWS
from virtue_jax.batch import RowShape
from virtue_jax.config import HieraConfig, Sam2Config, TextConfig, VirtueConfig, VisionConfig, from_dict
from virtue_jax.data.config import RowGroup
from virtue_jax.data.packing.first_fit import Need
from virtue_jax.data.row_groups.published import published_needs
from virtue_jax.data.row_groups.simulate import NeedSource, PackingFigures, SampleOrder, simulate

ROWS = {"scar": SCAR_ROWS, "mmeb": MMEB_ROWS}
REFERENCE_BATCH = 32  # per device, in the released yaml
STREAMS = {1024: (1, 8, 16), 8192: (1, 8, 64)}  # the last of each is the run files' own
FIXED = (1792, 512)  # slots of a row for the longest example with an image, and without


def geometry() -> VirtueConfig:
    """What lengths depend on: 256 segmentation tokens, 4 to 1,280 vision tokens; the rest is small."""
    text = TextConfig(100, 16, 16, 1, 2, 1, (2, 1, 1), 1, 2, 3)
    return VirtueConfig(Sam2Config(HieraConfig(8, 1, (1, 1, 1, 1), ())), VisionConfig(1, 16, 2, 16), text)


def groups_for(stage: str, variant: str, batch_size: int, streams: int) -> list[tuple[RowShape, int]]:
    """The run file's rows, their number rounded up to whole rows for each stream."""
    made = [from_dict(RowGroup, values) for values in ROWS[stage][variant].values()]
    return [(group.shape, -(-group.rows // streams) * streams) for group in made]


def packed(stage: str, batch_size: int, streams: int, steps: int, mixture: str) -> PackingFigures:
    sources = published_needs(stage, geometry(), count=2000, mixture=mixture)
    groups = groups_for(stage, "large" if batch_size > 1024 else "", batch_size, streams)
    order = SampleOrder(sources, 64)
    return simulate(order, groups, batch_size=batch_size, streams=streams, steps=steps, warmup=5)


def padded(sources: Sequence[NeedSource], count: int = 20_000) -> dict[str, float]:
    """Real tokens / slots without packing."""
    order = SampleOrder(sources, 64)
    sides: tuple[list[Need], list[Need]] = ([], [])
    for number in range(count):
        source, element = order[number]
        for side, need in zip(sides, sources[source].elements[element], strict=True):
            side.append(need)
    real = sum(need.slots for side in sides for need in side)
    fixed = sum(FIXED[0] if need.images else FIXED[1] for side in sides for need in side)
    batches = [side[i : i + REFERENCE_BATCH] for side in sides for i in range(0, count, REFERENCE_BATCH)]
    longest = sum(len(batch) * max(need.slots for need in batch) for batch in batches)
    return {"one example a row": real / fixed, "padded in batches of 32": real / longest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="counted steps of batch 1,024; an eighth at 8,192")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    found = []
    for stage in ROWS:
        for name, share in padded(published_needs(stage, geometry(), count=2000)).items():
            print(f"{stage:5s} {name:24s} row efficiency {share:.3f}", flush=True)
        for batch_size, dealt in STREAMS.items():
            for streams in dealt:
                begin = time.perf_counter()
                steps = args.steps if batch_size == 1024 else max(5, args.steps // 8)
                figures = packed(stage, batch_size, streams, steps, "equal")
                line = {
                    "data": stage,
                    "batch": batch_size,
                    "streams": streams,
                    "steps": steps,
                    "row_efficiency": figures.row_efficiency,
                    "patch_efficiency": figures.patch_efficiency,
                    "pairs": figures.pairs,
                    "waiting": figures.waiting,
                    "longest_wait": figures.longest_wait,
                }
                found.append(line)
                told = " ".join(
                    f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}"
                    for key, value in line.items()
                )
                print(f"{told} ({time.perf_counter() - begin:.0f} s)", flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
