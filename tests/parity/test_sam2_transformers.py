"""SAM-2 against `transformers`' Sam2Model with random weights: geometries and prompts that the golden data lacks."""

import functools
from dataclasses import dataclass

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from sam2_from_meta import sam2_from_meta
from sam2_transformers import in_meta_names, torch_config, two_way_stages
from transformers import Sam2Model

from converters.sources import ArraySource
from virtue_jax.batch import NO_TOKEN, NOT_A_POINT
from virtue_jax.config import HieraConfig, Sam2Config

pytestmark = [pytest.mark.parity, pytest.mark.slow]

ROWS, TOKENS = 2, 9
RELATIVE = 2e-5  # of a stage's largest value: float32 rounding through the whole stage

GEOMETRIES = {
    # The published windows; from stage 3 on they do not divide the map, so they are padded.
    "padded windows": Sam2Config(
        HieraConfig(8, 1, (1, 2, 4, 2), (4,), (8, 4, 14, 7), (7, 7)), d_model=32, image_size=256, decoder_mlp_dim=64
    ),
    # The windows of the large model, some larger than the map; global blocks side by side and at the end of a stage.
    "windows beyond the map": Sam2Config(
        HieraConfig(16, 2, (2, 1, 5, 2), (1, 5, 6, 9), (8, 4, 16, 8), (14, 14)),
        d_model=16,
        image_size=128,
        decoder_heads=4,
        decoder_mlp_dim=48,
        mask_in_chans=24,
    ),
    # Everything top-down, no narrowing of the cross attention, a background that is not square, a side of 3 x 64.
    "odd side": Sam2Config(
        HieraConfig(8, 2, (1, 1, 2, 1), (), (6, 4, 10, 5), (5, 9)),
        d_model=24,
        image_size=192,
        fpn_top_down_levels=(0, 1, 2, 3),
        decoder_heads=2,
        decoder_mlp_dim=40,
        attention_downsample_rate=1,
    ),
}


@torch.no_grad()
def randomise(model: Sam2Model) -> Sam2Model:
    """Weights under which every part matters: unit gain, non-zero biases, norms off one, embeddings of size one."""
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            p.copy_(1 + 0.2 * torch.randn_like(p))
        elif name.endswith("bias"):
            p.copy_(0.2 * torch.randn_like(p))
        elif ("embed" in name and "proj" not in name) or ("token" in name and p.shape[0] <= 4):
            p.copy_(torch.randn_like(p))
        else:
            p.copy_(torch.randn_like(p) / p[0].numel() ** 0.5)
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(model.shared_image_embedding.positional_embedding)
    return model.eval()


@functools.cache
def pair(geometry: str):
    """(torch model, jitted image_features, jitted prompt run) with equal weights."""
    config = GEOMETRIES[geometry]
    theirs = randomise(Sam2Model._from_config(torch_config(config), attn_implementation="eager"))
    graphdef, state = nnx.split(sam2_from_meta(config, ArraySource(in_meta_names(theirs))))

    def prompted(image_embed, points, labels, has_mask, masks):
        ours = nnx.merge(graphdef, state)
        sparse, dense = ours.encode_prompts(points, labels, has_mask, masks)
        return sparse, dense, *ours.fuse(image_embed, sparse, labels, dense)

    return theirs, jax.jit(lambda x: nnx.merge(graphdef, state).image_features(x)), jax.jit(prompted)


def images(config: Sam2Config) -> np.ndarray:
    shape = (ROWS, config.image_size, config.image_size, 3)
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def assert_close(ours, theirs: torch.Tensor, what: str):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=RELATIVE * scale, err_msg=what)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@torch.no_grad()
def test_image_encoder_agrees(geometry):
    theirs, encode, _ = pair(geometry)
    x = images(GEOMETRIES[geometry])
    ours = encode(x)
    pixels = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
    trunk = theirs.vision_encoder.backbone(pixels).intermediate_hidden_states
    for level, (mine, its) in enumerate(zip(ours["trunk"], trunk, strict=True)):
        assert_close(mine, its, f"trunk {level}")
    fpn = theirs.vision_encoder(pixels).fpn_hidden_states
    for level, (mine, its) in enumerate(zip(ours["fpn"], fpn, strict=True)):
        assert_close(mine, channels_last(its), f"fpn {level}")
    assert_close(ours["image_embed"], channels_last(theirs.get_image_embeddings(pixels)[-1]), "image_embed")


@dataclass(frozen=True)
class Prompt:
    """How many of each; `empty`: points with SAM's own padding label among the real ones."""

    points: int = 0
    box: bool = False
    mask: bool = False
    empty: int = 0


PROMPTS = {
    "one point": Prompt(points=1),
    "points of both kinds": Prompt(points=4),
    "points with empty ones": Prompt(points=3, empty=2),
    "box": Prompt(box=True),
    "box and points": Prompt(points=3, box=True),
    "mask and box": Prompt(box=True, mask=True),
    "mask and points": Prompt(points=2, mask=True),
    "everything": Prompt(points=4, box=True, mask=True),
    "mask and an empty point": Prompt(mask=True),
    "nothing but an empty point": Prompt(),
}


def torch_arguments(prompt: Prompt, config: Sam2Config) -> dict:
    rng, side = np.random.default_rng(2), config.image_size
    arguments = {}
    if count := prompt.points + prompt.empty:
        labels = np.arange(count) % 2
        labels[prompt.points :] = NOT_A_POINT
        points = rng.uniform(0, side, (ROWS, 1, count, 2)).astype(np.float32)
        arguments["input_points"] = torch.from_numpy(points)
        arguments["input_labels"] = torch.from_numpy(np.broadcast_to(labels, (ROWS, 1, count)).copy())
    if prompt.box:
        corners = np.sort(rng.uniform(0, side, (ROWS, 1, 2, 2)), axis=2).astype(np.float32)
        arguments["input_boxes"] = torch.from_numpy(corners.reshape(ROWS, 1, 4))
    if prompt.mask:
        masks = rng.standard_normal((ROWS, 1, config.mask_size, config.mask_size)) * 5
        arguments["input_masks"] = torch.from_numpy(masks.astype(np.float32))
    return arguments


def our_arguments(arguments: dict, config: Sam2Config) -> tuple[tuple[np.ndarray, ...], int]:
    """The same prompt as (points, labels, has_mask, masks), tokens in `transformers`' order, and how many are real."""
    points = np.full((ROWS, TOKENS, 2), 5.0, np.float32)
    labels = np.full((ROWS, TOKENS), NO_TOKEN, np.int32)
    used = 0
    if "input_points" in arguments:
        used = arguments["input_points"].shape[2]
        points[:, :used] = arguments["input_points"].numpy()[:, 0]
        labels[:, :used] = arguments["input_labels"].numpy()[:, 0]
    if "input_boxes" in arguments:
        points[:, used : used + 2] = arguments["input_boxes"].numpy().reshape(ROWS, 2, 2)
        labels[:, used : used + 2] = 2, 3
        used += 2
    padding = 1 if used else 2  # without any point, `transformers` adds an empty one, and the encoder its own
    labels[:, used : used + padding] = NOT_A_POINT
    has_mask = np.full(ROWS, "input_masks" in arguments)
    masks = np.full((ROWS, config.mask_size, config.mask_size), 3.0, np.float32)
    if "input_masks" in arguments:
        masks = arguments["input_masks"].numpy()[:, 0]
    return (points, labels, has_mask, masks), used + padding


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_prompts_agree(geometry, prompt):
    config = GEOMETRIES[geometry]
    theirs, _, run = pair(geometry)
    side = config.embedding_size
    embed = np.random.default_rng(3).standard_normal((ROWS, side, side, config.d_model), np.float32)
    arguments = torch_arguments(PROMPTS[prompt], config)
    expected = two_way_stages(theirs, torch.from_numpy(embed).permute(0, 3, 1, 2).contiguous(), arguments)
    ours, used = our_arguments(arguments, config)
    sparse, dense, fused, tokens = map(np.asarray, run(embed, *ours))
    own = tokens.shape[1] - TOKENS
    assert_close(sparse[:, :used], expected["sparse"][:, 0], "sparse")
    assert_close(dense, channels_last(expected["dense"]), "dense")
    assert_close(tokens[:, : own + used], expected["tokens"][:, 0], "tokens")
    assert_close(fused.reshape(ROWS, -1, config.d_model), expected["map"][:, 0], "map")
