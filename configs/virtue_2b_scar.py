"""virtue train --config configs/virtue_2b_scar.py --workdir runs/scar-2b --config.model.directory=models/virtue-2b

The paper's second stage: 1,000 further steps on SCaR-train from a VIRTUE-2B, whose connector and adapter go on
training. Values: `configs/published.py`. `:large` after the file's name: batch 8,192.
Weights are on every device (4.5 GiB with the vision tower), rows are split over all devices.
"""

import ml_collections

from configs.published import SCAR_ROWS, published_run, scar_sources


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Values of a `TrainConfig`; variant: "" or "large"."""
    return published_run(
        variant,
        size="2b",
        directory="models/virtue-2b",
        steps=1000,
        sources=scar_sources("data/SCaR-Train"),
        rows=SCAR_ROWS,
        fsdp=1,
        adapter=None,
    )
