"""virtue train --config configs/virtue_7b_mmeb.py --workdir runs/mmeb-7b --config.model.directory=models/base-7b

The paper's first stage: 2,000 steps on the 20 subsets of MMEB-train, from Qwen2-VL-7B-Instruct and SAM 2.1 (B+) with a
fresh connector and adapter (`converters import` without `--connector` and `--adapter` makes the directory). Values:
`configs/published.py`. `:large` after the file's name: batch 8,192.
Weights are split over 4 devices (`fsdp`) to fit 16 GiB, in parts that are multiples of 128; on devices of 95 GiB
`--config.mesh.fsdp=1` saves their gathering.
"""

import ml_collections

from configs.published import DORA, MMEB_ROWS, published_run
from virtue_jax.data.formats.mmeb import subset_sources


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Values of a `TrainConfig`; variant: "" or "large"."""
    return published_run(
        variant,
        size="7b",
        directory="models/base-7b",
        steps=2000,
        sources=subset_sources("data/MMEB-train"),
        rows=MMEB_ROWS,
        fsdp=4,
        adapter=DORA,
    )
