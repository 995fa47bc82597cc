"""SAM-2 against `transformers`' Sam2Model with random weights: geometries and prompts that the golden data lacks."""

import functools
import re
from dataclasses import dataclass

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from sam2_from_meta import sam2_from_meta
from transformers import Sam2Config as TorchConfig
from transformers import Sam2HieraDetConfig, Sam2MaskDecoderConfig, Sam2Model, Sam2PromptEncoderConfig, Sam2VisionConfig

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


def torch_config(config: Sam2Config) -> TorchConfig:
    hiera, side = config.hiera, config.image_size
    backbone = Sam2HieraDetConfig(
        hidden_size=hiera.embed_dim,
        num_attention_heads=hiera.num_heads,
        image_size=[side, side],
        window_positional_embedding_background_size=list(hiera.window_pos_embed_bkg_spatial_size),
        blocks_per_stage=list(hiera.stages),
        embed_dim_per_stage=list(hiera.stage_dims),
        num_attention_heads_per_stage=[hiera.num_heads * 2**s for s in range(4)],
        window_size_per_stage=list(hiera.window_spec),
        global_attention_blocks=list(hiera.global_att_blocks),
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=list(hiera.stage_dims[::-1]),
        backbone_feature_sizes=[[side // stride, side // stride] for stride in (4, 8, 16)],
        fpn_hidden_size=config.d_model,
        fpn_top_down_levels=list(config.fpn_top_down_levels),
    )
    prompt = Sam2PromptEncoderConfig(
        hidden_size=config.d_model, image_size=side, mask_input_channels=config.mask_in_chans
    )
    decoder = Sam2MaskDecoderConfig(
        hidden_size=config.d_model,
        num_attention_heads=config.decoder_heads,
        mlp_dim=config.decoder_mlp_dim,
        attention_downsample_rate=config.attention_downsample_rate,
        iou_head_hidden_dim=16,
    )
    return TorchConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)


# `transformers`' names -> Meta's, from where the converter's own table goes on.
RENAMES = [
    (r"vision_encoder\.backbone\.patch_embed\.projection", "image_encoder.trunk.patch_embed.proj"),
    (r"vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"vision_encoder\.neck\.convs\.(\d)", r"image_encoder.neck.convs.\1.conv"),
    (r"no_memory_embedding", "no_mem_embed"),
    (r"prompt_encoder\.shared_embedding\.positional_embedding", "pe_layer.positional_encoding_gaussian_matrix"),
    (r"prompt_encoder\.mask_embed\.conv1", "mask_downscaling.0"),
    (r"prompt_encoder\.mask_embed\.layer_norm1", "mask_downscaling.1"),
    (r"prompt_encoder\.mask_embed\.conv2", "mask_downscaling.3"),
    (r"prompt_encoder\.mask_embed\.layer_norm2", "mask_downscaling.4"),
    (r"prompt_encoder\.mask_embed\.conv3", "mask_downscaling.6"),
    (r"^(?:prompt_encoder\.)?(pe_layer|mask_downscaling|no_mask_embed|not_a_point_embed)", r"sam_prompt_encoder.\1"),
    (r"^mask_decoder\.", "sam_mask_decoder."),
    (r"layer_norm_final_attn", "norm_final_attn"),
    (r"(blocks\.\d+|transformer\.layers\.\d+)\.layer_norm", r"\1.norm"),
    (r"\.mlp\.proj_in", ".mlp.layers.0"),
    (r"\.mlp\.proj_out", ".mlp.layers.1"),
    (r"\.o_proj\.", ".out_proj."),
]


def in_meta_names(model: Sam2Model) -> dict[str, np.ndarray]:
    renamed = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor.numpy().copy()
    points = renamed.pop("prompt_encoder.point_embed.weight")
    return renamed | {f"sam_prompt_encoder.point_embeddings.{i}.weight": points[i : i + 1] for i in range(4)}


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


@torch.no_grad()
def run_torch(model: Sam2Model, image_embed: np.ndarray, arguments: dict, config: Sam2Config) -> dict:
    """Inputs and outputs of the two-way transformer in a whole forward pass of `transformers`."""
    seen = {}
    hooks = [
        model.prompt_encoder.register_forward_hook(lambda _, __, out: seen.update(sparse=out[0], dense=out[1])),
        model.mask_decoder.transformer.register_forward_hook(lambda _, __, out: seen.update(tokens=out[0], map=out[1])),
    ]
    h, d = config.embedding_size, config.d_model
    fine = [torch.zeros(ROWS, d // 8, 4 * h, 4 * h), torch.zeros(ROWS, d // 4, 2 * h, 2 * h)]
    embed = torch.from_numpy(np.moveaxis(image_embed, -1, 1).copy())
    try:
        model(image_embeddings=[*fine, embed], **arguments)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_prompts_agree(geometry, prompt):
    config = GEOMETRIES[geometry]
    theirs, _, run = pair(geometry)
    side = config.embedding_size
    embed = np.random.default_rng(3).standard_normal((ROWS, side, side, config.d_model), np.float32)
    arguments = torch_arguments(PROMPTS[prompt], config)
    expected = run_torch(theirs, embed, arguments, config)
    ours, used = our_arguments(arguments, config)
    sparse, dense, fused, tokens = map(np.asarray, run(embed, *ours))
    own = tokens.shape[1] - TOKENS
    assert_close(sparse[:, :used], expected["sparse"][:, 0], "sparse")
    assert_close(dense, channels_last(expected["dense"]), "dense")
    assert_close(tokens[:, : own + used], expected["tokens"][:, 0], "tokens")
    assert_close(fused.reshape(ROWS, -1, config.d_model), expected["map"][:, 0], "map")
