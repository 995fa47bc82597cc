"""virtue train --config configs/quickstart.py --workdir runs/quickstart

A small VIRTUE from random weights on `virtue scenes` data, every tower trained, on a CPU in minutes. The text of its
queries never says where the object is, so that only the visual prompt can.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Values of a `TrainConfig`."""
    text = {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "mrope_section": (4, 6, 6),
        # Set from the tokenizer that the run trains on its own texts.
        "image_token_id": -1,
        "vision_start_token_id": -1,
        "vision_end_token_id": -1,
    }
    hiera = {
        "embed_dim": 16,
        "num_heads": 1,
        "stages": (1, 1, 3, 1),
        "global_att_blocks": (3,),
        "window_spec": (8, 4, 8, 4),
        "window_pos_embed_bkg_spatial_size": (8, 8),
    }
    sam2 = {
        "hiera": hiera,
        "d_model": 64,
        "image_size": 128,
        "decoder_heads": 4,
        "decoder_mlp_dim": 128,
        "mask_in_chans": 8,
    }
    scratch = {
        "sam2": sam2,
        "vision": {"depth": 2, "embed_dim": 64, "num_heads": 4, "hidden_size": 128},
        "text": text,
        "compat": {"coordinates_in_text": False},
        "min_pixels": 56 * 56,
        "max_pixels": 84 * 84,
    }
    data = {
        "path": "runs/quickstart/scenes",
        "queries": {"slots": 112, "examples": 4, "images": 1, "patches": 36, "prompts": 4, "points": 4, "masks": True},
        "targets": {"slots": 24},
        "box_weight": 1.0,
        "point_weight": 1.0,
        "mask_weight": 1.0,
    }
    return ml_collections.ConfigDict(
        {
            "model": {"scratch": scratch},
            "data": data,
            "steps": 800,
            "batch_size": 16,
            "trainable": (".*",),
            "optimizer": {"learning_rate": 2e-3, "warmup_steps": 50, "decay": "cosine", "weight_decay": 0.01},
            "temperature": 0.05,
            "log_every": 20,
            "checkpoint_every": 200,
        }
    )
