"""The image pipeline against `transformers`' Pillow image processor, its M-RoPE, and PyTorch's antialiased resize."""

import numpy as np
import pytest
import torch
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from virtue_jax.config import HieraConfig, Sam2Config, TextConfig, VirtueConfig, VisionConfig
from virtue_jax.data.encoding.positions import ImageSpan, rotary_positions
from virtue_jax.data.encoding.qwen_image import normalise_patches, qwen_image
from virtue_jax.data.encoding.sam_image import resize

pytestmark = pytest.mark.parity

CONFIG = VirtueConfig(
    sam2=Sam2Config(hiera=HieraConfig(8, 1, (1, 2, 3, 2), (4,))),
    vision=VisionConfig(depth=1, embed_dim=32, num_heads=2, hidden_size=64),
    text=TextConfig(1024, 64, 128, 1, 4, 2, (2, 3, 3), 1012, 1009, 1010),
)


@pytest.mark.parametrize("height, width", [(28, 28), (31, 97), (150, 201), (640, 427), (1200, 60), (1300, 1150)])
def test_patches_equal_those_of_transformers(height, width):
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    processor = Qwen2VLImageProcessorPil(min_pixels=CONFIG.min_pixels, max_pixels=CONFIG.max_pixels)
    theirs = processor(images=[pixels], input_data_format="channels_last", return_tensors="np")
    ours = qwen_image(pixels, CONFIG, "row")
    assert (1, *ours.grid) == tuple(theirs["image_grid_thw"][0])
    frames = theirs["pixel_values"].reshape(-1, 3, 2, 196)
    np.testing.assert_allclose(normalise_patches(ours.patches), frames[:, :, 0].reshape(-1, 588), atol=1e-6, rtol=0)


@pytest.mark.parametrize("height, width", [(1, 1), (20, 40), (60, 1200), (479, 641), (1024, 1024), (1500, 2100)])
def test_resize_equals_torch_interpolate(height, width):
    pixels = np.random.default_rng(width).random((height, width, 3), np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None], (1024, 1024), mode="bilinear", antialias=True
    )
    np.testing.assert_allclose(resize(pixels, 1024, 1024), theirs[0].permute(1, 2, 0).numpy(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("marked", [True, False])
def test_mrope_equals_get_rope_index_with_three_images(marked):
    grids = [(2, 3), (5, 1), (4, 4)]
    ids, images = [], []
    for number, (rows, columns) in enumerate(grids):
        ids += [7] * (number + 1) + [1009] * marked
        images.append(ImageSpan(len(ids), rows, columns))
        ids += [1012] * (rows * columns) + [1010] * marked
    ids += [5, 6]
    config = Qwen2VLConfig(image_token_id=1012, vision_start_token_id=1009, vision_end_token_id=1010)
    holder = type("Model", (), {"config": config, "get_vision_position_ids": Qwen2VLModel.get_vision_position_ids})()
    tokens = torch.tensor([ids])
    theirs, _ = Qwen2VLModel.get_rope_index(
        holder,
        tokens,
        mm_token_type_ids=(tokens == 1012).int(),
        image_grid_thw=torch.tensor([(1, 2 * rows, 2 * columns) for rows, columns in grids]),
    )
    np.testing.assert_array_equal(rotary_positions("mrope", len(ids), images), theirs[:, 0].numpy())
