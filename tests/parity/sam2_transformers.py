"""`transformers`' Sam2Model for one of our geometries, its weights under Meta's names, and its two-way transformer."""

import re
from collections.abc import Mapping

import numpy as np
import torch
from transformers import Sam2Config as TorchConfig
from transformers import Sam2HieraDetConfig, Sam2MaskDecoderConfig, Sam2Model, Sam2PromptEncoderConfig, Sam2VisionConfig

from converters.sam2_transformers import meta_name
from virtue_jax.config import Sam2Config

POINTS = "prompt_encoder.point_embed.weight"  # one table here, four tensors of one row in Meta's files
META_POINTS = [f"sam_prompt_encoder.point_embeddings.{i}.weight" for i in range(4)]
# What makes masks of the two-way transformer's output; VIRTUE does not run it.
MASK_HEADS = re.compile(r"mask_decoder\.(upscale|output_hypernetworks|iou_prediction_head|conv_s|pred_obj).*")


def torch_config(config: Sam2Config) -> TorchConfig:
    """The same geometry in `transformers`' words."""
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


def in_meta_names(model: Sam2Model) -> dict[str, np.ndarray]:
    """The model's weights as Meta names them."""
    state = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    points = state.pop(POINTS)
    renamed = {meta_name(name): array for name, array in state.items()}
    return renamed | {name: points[i : i + 1] for i, name in enumerate(META_POINTS)}


@torch.no_grad()
def load_meta(model: Sam2Model, tensors: Mapping[str, torch.Tensor]) -> None:
    """Meta's weights into the model, all that VIRTUE runs; the mask heads stay as they are.

    Raises:
        KeyError, ValueError: a tensor that is missing or misshapen.
    """
    for name, own in model.state_dict().items():
        if MASK_HEADS.fullmatch(name):
            continue
        given = torch.cat([tensors[n] for n in META_POINTS]) if name == POINTS else tensors[meta_name(name)]
        if given.shape != own.shape:
            raise ValueError(f"{meta_name(name)} is {tuple(given.shape)}, {name} is {tuple(own.shape)}")
        own.copy_(given)


@torch.no_grad()
def two_way_stages(model: Sam2Model, image_embed: torch.Tensor, prompt: dict) -> dict[str, torch.Tensor]:
    """Inputs and outputs of the two-way transformer in a whole forward pass of `transformers`.

    image_embed: [B, D, h, w]. prompt: arguments of Sam2Model's forward, input_boxes and the like.

    Returns:
        sparse[B, 1, N, D], dense[B, D, h, w], tokens[B, 1, T, D], map[B, 1, h * w, D].
    """
    seen = {}
    hooks = [
        model.prompt_encoder.register_forward_hook(lambda _, __, out: seen.update(sparse=out[0], dense=out[1])),
        model.mask_decoder.transformer.register_forward_hook(lambda _, __, out: seen.update(tokens=out[0], map=out[1])),
    ]
    rows, d, h, w = image_embed.shape
    fine = [torch.zeros(rows, d // 8, 4 * h, 4 * w), torch.zeros(rows, d // 4, 2 * h, 2 * w)]
    try:
        model(image_embeddings=[*fine, image_embed], **prompt)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
