"""virtue train --config configs/virtue_2b_scar.py --workdir runs/scar --config.model.directory=models/virtue-2b

The paper's second stage: 1,000 further steps on SCaR-train from a VIRTUE-2B (adapter and connector train, everything
else is frozen), DoRA r 8 as published.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Values of a `TrainConfig`; batch 1,024, temperature and schedule as published (guide: reference section 1)."""
    # A native-resolution image gives at most 1,280 vision tokens (5,120 patches), beside 256 segmentation tokens.
    queries = {"slots": 1792, "examples": 1, "images": 1, "patches": 5120, "prompts": 1, "points": 3}
    return ml_collections.ConfigDict(
        {
            "model": {"directory": "models/virtue-2b"},
            "data": {
                "path": "data/SCaR-Train",
                "image_root": "data/images",
                "queries": queries,
                "targets": {"slots": 128},
            },
            "steps": 1000,
            "batch_size": 1024,
            "query_micro_batches": 512,
            "target_micro_batches": 32,
            "optimizer": {"learning_rate": 2e-5, "warmup_steps": 200, "decay": "linear"},
            "numerics": {"compute": "bfloat16", "params": "bfloat16", "remat": True},
            "temperature": 0.02,
            "log_every": 10,
            "checkpoint_every": 100,
        }
    )
