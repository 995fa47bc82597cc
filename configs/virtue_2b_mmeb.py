"""virtue train --config configs/virtue_2b_mmeb.py --workdir runs/mmeb-2b --config.model.directory=models/base-2b

The paper's first stage: 2,000 steps on the 20 subsets of MMEB-train, from Qwen2-VL-2B-Instruct and SAM 2.1 (B+) with a
fresh connector and adapter (`converters import` without `--connector` and `--adapter` makes the directory). Values:
`configs/published.py`. `:large` after the file's name: batch 8,192.
Weights are on every device (4.5 GiB with the vision tower), rows are split over all devices.
"""

import ml_collections

from configs.published import DORA, MMEB_ROWS, published_run
from virtue_jax.data.formats.mmeb import subset_sources


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Values of a `TrainConfig`; variant: "" or "large"."""
    return published_run(
        variant,
        size="2b",
        directory="models/base-2b",
        steps=2000,
        sources=subset_sources("data/MMEB-train"),
        rows=MMEB_ROWS,
        fsdp=1,
        adapter=DORA,
    )
