"""virtue train --config tests/end_to_end/tiny_run.py[:point] --workdir DIR --config.data.sources.scenes.path=SCENES

The quickstart's two runs made as small as they go: every part is there, nothing is learnt.
"""

import ml_collections

from configs import quickstart

COMMAND = ("--config", f"{__file__}:point")


def given(scenes, model) -> tuple[str, str]:
    """Options of `COMMAND`: its data and the model it starts from."""
    return f"--config.data.sources.scenes.path={scenes}", f"--config.model.directory={model}"


def get_config(run: str = "recognise") -> ml_collections.ConfigDict:
    """Values of a `TrainConfig`."""
    config = quickstart.get_config(run)
    if "scratch" in config.model:
        _shrink(config.model.scratch)
    # Every kind of prompt, and two queries of one image in a row.
    images = {"slots": 256, "examples": 2, "vision_rows": 1, "patches": 16, "images": 1}
    images |= {"prompts": 2, "points": 4, "masks": True}
    config.data.rows = {
        "images": {"shape": images, "rows": 4},
        "text": {"shape": {"slots": 128, "examples": 8}, "rows": 6},
    }
    config.data.share_images = 2
    config.data.sources.scenes.update(box_weight=1.0, point_weight=1.0, mask_weight=1.0)
    config.update(steps=8, batch_size=4, log_every=1, checkpoint_every=2)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=2)
    return config


def _shrink(virtue: ml_collections.ConfigDict) -> None:
    virtue.text.update(hidden_size=32, intermediate_size=48, num_hidden_layers=2, mrope_section=(2, 1, 1))
    virtue.vision.update(depth=1, embed_dim=32, num_heads=2, hidden_size=32)
    virtue.sam2.update(image_size=64, d_model=32, decoder_mlp_dim=32, mask_in_chans=4)
    virtue.sam2.hiera.update(
        embed_dim=8, stages=(1, 1, 2, 1), global_att_blocks=(3,), window_pos_embed_bkg_spatial_size=(4, 4)
    )
    virtue.update(min_pixels=56 * 56, max_pixels=56 * 56)
