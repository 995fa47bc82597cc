"""The training runs of the check: --config tests/gpu/run_file.py:2b (a model directory is given) or :tiny."""

import ml_collections
from end_to_end import tiny_run

from configs.published import DORA


def get_config(size: str = "2b") -> ml_collections.ConfigDict:
    """Values of a `TrainConfig`; the data's place, the model's and the steps are set on the command line."""
    if size == "tiny":
        config = tiny_run.get_config()
        config.trainable = (r"text\..*", r"connector\..*")
        config.profile_steps = (4, 4)
        return config
    return ml_collections.ConfigDict(
        {
            "model": {"directory": "", "adapter": DORA},
            "data": {"sources": {"scenes": {"path": ""}}, "rows": {}, "streams": 4},
            "steps": 50,
            "batch_size": 64,
            "optimizer": {"learning_rate": 1e-4, "warmup_steps": 5, "decay": "constant"},
            "numerics": {"compute": "bfloat16", "params": "bfloat16", "attention": "auto", "remat": "auto"},
            "loss": {"temperature": 0.02},
            "log_every": 1,
            "checkpoint_every": 1000,
            "profile_steps": (20, 22),
        }
    )
