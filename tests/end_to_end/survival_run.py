"""virtue train --config tests/end_to_end/survival_run.py[:MODEL] --workdir DIR --config.data.sources.scenes.path=SCENES

The run of the kill test and of the multi-process tests: every kind of prompt, shared images, hard negatives, two
packing streams with so little room that elements wait, frozen towers and language model, a DoRA adapter with dropout;
its rows divide by eight devices.
"""

import ml_collections

STEPS = 30


def get_config(model: str = "") -> ml_collections.ConfigDict:
    """Values of a `TrainConfig`. model: a directory to start from; none = random weights."""
    images = {"slots": 96, "examples": 4, "vision_rows": 1, "patches": 16, "images": 1}
    images |= {"prompts": 2, "points": 4, "masks": True}
    return ml_collections.ConfigDict(
        {
            "model": {"directory": model} if model else {"scratch": _scratch()},
            "data": {
                "sources": {"scenes": {"path": "", "box_weight": 1.0, "point_weight": 1.0, "mask_weight": 1.0}},
                "rows": {
                    "images": {"shape": images, "rows": 8},
                    "texts": {"shape": {"slots": 48, "examples": 4}, "rows": 8},
                },
                "hard_negatives": 1,
                "share_images": 2,
                "interleave": 4,
                "streams": 2,
                "pixels": "uint8",
            },
            "steps": STEPS,
            "batch_size": 16,
            "log_every": 3,  # most steps are dispatched before the one before is looked at
            "checkpoint_every": 4,
            "watchdog_minutes": 5.0,
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
        }
    )


def _scratch() -> dict:
    text = {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "mrope_section": (2, 1, 1),
        # Set from the tokenizer that the run trains on its own texts.
        "image_token_id": -1,
        "vision_start_token_id": -1,
        "vision_end_token_id": -1,
    }
    hiera = {
        "embed_dim": 8,
        "num_heads": 1,
        "stages": (1, 1, 2, 1),
        "global_att_blocks": (3,),
        "window_spec": (8, 4, 4, 4),
        "window_pos_embed_bkg_spatial_size": (4, 4),
    }
    sam2 = {
        "hiera": hiera,
        "d_model": 32,
        "image_size": 64,
        "decoder_heads": 4,
        "decoder_mlp_dim": 32,
        "mask_in_chans": 4,
    }
    return {
        "sam2": sam2,
        "vision": {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 32},
        "text": text,
        "adapter": {"rank": 4, "alpha": 8.0, "dropout": 0.1, "use_dora": True, "targets": ("q_proj", "v_proj")},
        "compat": {"coordinates_in_text": False},
        "min_pixels": 56 * 56,
        "max_pixels": 56 * 56,
    }
