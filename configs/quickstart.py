"""virtue train --config configs/quickstart.py:recognise --workdir runs/quickstart/recognise

A small VIRTUE from random weights on `virtue scenes` data, every tower trained, on a CPU in minutes. Two runs:
`recognise` on images of one object, where the caption can be found without knowing which object is meant; then `point`,
which goes on from its model, on images of four. The text of a query never says where the object is, so that only the
visual prompt can.
"""

import ml_collections

DATA = "runs/quickstart"


def get_config(run: str = "recognise") -> ml_collections.ConfigDict:
    """Values of a `TrainConfig`."""
    runs = {"recognise": _recognise, "point": _point}
    if run not in runs:
        raise ValueError(f"configs/quickstart.py:{run}: the runs are {', '.join(runs)}")
    shared = {
        "trainable": (".*",),
        "loss": {"temperature": 0.05},
        "log_every": 20,
        "checkpoint_every": 200,
        "mesh": {},
        "numerics": {},
    }
    return ml_collections.ConfigDict(shared | runs[run]())


def _recognise() -> dict:
    images = {"slots": QUERY, "examples": 1, "vision_rows": 1, "patches": 4, "images": 1, "prompts": 1, "points": 3}
    return {
        "model": {"scratch": _scratch()},
        "data": {
            "sources": {"scenes": {"path": f"{DATA}/scenes-one"}},
            "rows": {
                "images": {"shape": images, "rows": 24, "micro_batches": 1},
                "text": {"shape": {"slots": 128, "examples": 12}, "rows": 3, "micro_batches": 1},
            },
        },
        "steps": 300,
        "batch_size": 24,
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 50, "decay": "constant", "weight_decay": 0.01},
    }


def _point() -> dict:
    images = {"slots": 4 * QUERY, "examples": 4, "vision_rows": 1, "patches": 4, "images": 1, "prompts": 4, "points": 3}
    return {
        "model": {"directory": f"{DATA}/recognise/model"},
        "data": {
            "sources": {"scenes": {"path": f"{DATA}/scenes"}},
            "rows": {
                "images": {"shape": images, "rows": 12, "micro_batches": 1},
                # A positive and three distractors for each of 48 queries, 10 captions or so to a row.
                "text": {"shape": {"slots": 128, "examples": 12}, "rows": 20, "micro_batches": 1},
            },
            "hard_negatives": 3,
            "share_images": 4,
        },
        "steps": 750,
        "batch_size": 48,
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 50, "decay": "linear", "weight_decay": 0.01},
    }


QUERY = (
    40  # slots of a query: 9 segmentation tokens, 1 vision token with its markup, the text that all share; 5 to spare
)


def _scratch() -> dict:
    text = {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "mrope_section": (4, 6, 6),
        # Set from the tokenizer that the run trains on its own texts.
        "image_token_id": -1,
        "vision_start_token_id": -1,
        "vision_end_token_id": -1,
    }
    hiera = {
        "embed_dim": 12,
        "num_heads": 1,
        "stages": (1, 1, 2, 1),
        "global_att_blocks": (3,),
        "window_spec": (8, 4, 4, 4),
        "window_pos_embed_bkg_spatial_size": (8, 8),
    }
    sam2 = {
        "hiera": hiera,
        "d_model": 64,
        "image_size": 192,
        "decoder_heads": 4,
        "decoder_mlp_dim": 128,
        "mask_in_chans": 8,
    }
    return {
        "sam2": sam2,
        "vision": {"depth": 2, "embed_dim": 64, "num_heads": 4, "hidden_size": 128},
        "text": text,
        "compat": {"coordinates_in_text": False},
        # One vision token: Qwen's tower sees the background, what is pointed at has to come through SAM-2.
        "min_pixels": 28 * 28,
        "max_pixels": 28 * 28,
    }
