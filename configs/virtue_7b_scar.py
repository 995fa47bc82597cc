"""virtue train --config configs/virtue_7b_scar.py --workdir runs/scar-7b --config.model.directory=models/virtue-7b

The paper's second stage: 1,000 further steps on SCaR-train from a VIRTUE-7B, whose connector and adapter go on
training. Values: `configs/published.py`. `:large` after the file's name: batch 8,192.
Weights are split over 4 devices (`fsdp`) to fit 16 GiB, in parts that are multiples of 128; on devices of 95 GiB
`--config.mesh.fsdp=1` saves their gathering.
"""

import ml_collections

from configs.published import SCAR_ROWS, published_run, scar_sources


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Values of a `TrainConfig`; variant: "" or "large"."""
    return published_run(
        variant,
        size="7b",
        directory="models/virtue-7b",
        steps=1000,
        sources=scar_sources("data/SCaR-Train"),
        rows=SCAR_ROWS,
        fsdp=4,
        adapter=None,
    )
