"""Meta's SAM-2.1 state dict: geometry, weight table, and what VIRTUE leaves out of it."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from converters.errors import CheckpointError, refuse
from converters.mapped_file import TensorInfo
from converters.rules import (
    LeftOut,
    Rule,
    channels_last,
    conv,
    linear,
    norm,
    pointwise,
    same,
    tensor,
    without_leading,
    without_two_leading,
)
from converters.sam2_yaml import META_DECODER_HEADS, OWN_KEY
from virtue_jax.config import HieraConfig, Sam2Config

# What a state dict cannot tell, for the published sizes, by (embed_dim, stages): facebookresearch/sam2 configs/sam2.1.
PUBLISHED = {
    (96, (1, 2, 7, 2)): ("sam2.1_hiera_t", dict(num_heads=1, global_att_blocks=(5, 7, 9), window_spec=(8, 4, 14, 7))),
    (96, (1, 2, 11, 2)): (
        "sam2.1_hiera_s",
        dict(num_heads=1, global_att_blocks=(7, 10, 13), window_spec=(8, 4, 14, 7)),
    ),
    (112, (2, 3, 16, 3)): (
        "sam2.1_hiera_b+",
        dict(num_heads=2, global_att_blocks=(12, 16, 20), window_spec=(8, 4, 14, 7)),
    ),
    (144, (2, 6, 36, 4)): (
        "sam2.1_hiera_l",
        dict(num_heads=2, global_att_blocks=(23, 33, 43), window_spec=(8, 4, 16, 8)),
    ),
}

# Defaults of Meta's Hiera class, which the published yaml files rely on.
_TRUNK_DEFAULTS = dict(
    embed_dim=96,
    num_heads=1,
    stages=(2, 3, 16, 3),
    global_att_blocks=(12, 16, 20),
    window_spec=(8, 4, 14, 7),
    window_pos_embed_bkg_spatial_size=(14, 14),
)

_TRUNK = "image_encoder.trunk"
_DECODER = "sam_mask_decoder.transformer"

_TRACKING = "video tracking, which VIRTUE does not do"
_MASKS = "mask prediction: VIRTUE reads the map before it"
LEFT_OUT = tuple(
    LeftOut(pattern, reason)
    for pattern, reason in [
        (r"memory_attention\..+", _TRACKING),
        (r"memory_encoder\..+", _TRACKING),
        (r"mask_downsample\..+", _TRACKING),
        (r"obj_ptr_proj\..+", _TRACKING),
        (r"obj_ptr_tpos_proj\..+", _TRACKING),
        (r"maskmem_tpos_enc", _TRACKING),
        (r"no_mem_pos_enc", _TRACKING),
        (r"no_obj_ptr", _TRACKING),
        (r"no_obj_embed_spatial", _TRACKING),
        (r"sam_mask_decoder\.output_upscaling\..+", _MASKS),
        (r"sam_mask_decoder\.conv_s0\..+", _MASKS),
        (r"sam_mask_decoder\.conv_s1\..+", _MASKS),
        (r"sam_mask_decoder\.output_hypernetworks_mlps\..+", _MASKS),
        (r"sam_mask_decoder\.iou_prediction_head\..+", _MASKS),
        (r"sam_mask_decoder\.pred_obj_score_head\..+", _MASKS),
    ]
)


POINT_TABLE = "sam_prompt_encoder.point_embeddings.weight"


def rules(config: Sam2Config, *, point_table: bool = False) -> list[Rule]:
    """Meta's names -> `sam2.*`. point_table: the four point embeddings are one tensor, `POINT_TABLE`."""
    return _trunk_rules(config) + _prompt_rules(point_table=point_table) + _decoder_rules(config)


def _trunk_rules(config: Sam2Config) -> list[Rule]:
    table = [
        Rule(f"{_TRUNK}.patch_embed.proj", "sam2.trunk.patch_embed", conv),
        Rule(f"{_TRUNK}.pos_embed", "sam2.trunk.pos_embed", tensor(channels_last)),
        Rule(f"{_TRUNK}.pos_embed_window", "sam2.trunk.pos_embed_window", tensor(channels_last)),
        Rule("no_mem_embed", "sam2.no_mem_embed", tensor(without_two_leading)),
        Rule(
            "image_encoder.neck.convs.{i}.conv",
            "sam2.neck.convs.{i}",
            pointwise,
            layers=range(len(config.hiera.stages)),
        ),
    ]
    start = 0
    for stage, count in enumerate(config.hiera.stages):
        target = f"sam2.trunk.stages.{stage}"
        table += _block_rules(f"{_TRUNK}.blocks.{start}", f"{target}.first", None)
        if stage:
            table.append(Rule(f"{_TRUNK}.blocks.{start}.proj", f"{target}.first.proj", linear))
        table += _block_rules(f"{_TRUNK}.blocks.{{i}}", f"{target}.rest", range(start + 1, start + count))
        start += count
    return table


def _block_rules(source: str, target: str, layers: range | None) -> list[Rule]:
    parts = [
        ("norm1", "norm1", norm),
        ("norm2", "norm2", norm),
        ("attn.qkv", "attn.qkv", linear),
        ("attn.proj", "attn.proj", linear),
        ("mlp.layers.0", "mlp.fc1", linear),
        ("mlp.layers.1", "mlp.fc2", linear),
    ]
    return [Rule(f"{source}.{a}", f"{target}.{b}", family, layers) for a, b, family in parts]


def _prompt_rules(*, point_table: bool) -> list[Rule]:
    source, target = "sam_prompt_encoder", "sam2.prompt_encoder"
    gaussian = "positional_encoding_gaussian_matrix"
    row = tensor(without_leading)
    points = f"{target}.point_embeddings"
    return [
        Rule(f"{source}.pe_layer.{gaussian}", f"{target}.{gaussian}", tensor(same)),
        Rule(POINT_TABLE, points, tensor(same))
        if point_table
        else Rule(f"{source}.point_embeddings.{{i}}.weight", points, row, layers=range(4)),
        Rule(f"{source}.not_a_point_embed.weight", f"{target}.not_a_point_embed", row),
        Rule(f"{source}.no_mask_embed.weight", f"{target}.no_mask_embed", row),
        Rule(f"{source}.mask_downscaling.0", f"{target}.mask_downscaling.conv1", conv),
        Rule(f"{source}.mask_downscaling.1", f"{target}.mask_downscaling.norm1", norm),
        Rule(f"{source}.mask_downscaling.3", f"{target}.mask_downscaling.conv2", conv),
        Rule(f"{source}.mask_downscaling.4", f"{target}.mask_downscaling.norm2", norm),
        Rule(f"{source}.mask_downscaling.6", f"{target}.mask_downscaling.conv3", pointwise),
    ]


def _decoder_rules(config: Sam2Config) -> list[Rule]:
    target = "sam2.mask_decoder"
    names = ("obj_score_token", "iou_token", "mask_tokens")
    table = [Rule(f"sam_mask_decoder.{name}.weight", f"{target}.{name}", tensor(same)) for name in names]
    layers = range(config.decoder_depth)
    layer, to = f"{_DECODER}.layers.{{i}}", f"{target}.transformer.layers.{{i}}"
    for attention in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token"):
        for proj in ("q_proj", "k_proj", "v_proj", "out_proj"):
            table.append(Rule(f"{layer}.{attention}.{proj}", f"{to}.{attention}.{proj}", linear, layers))
    table += [Rule(f"{layer}.norm{n}", f"{to}.norm{n}", norm, layers) for n in (1, 2, 3, 4)]
    table += [Rule(f"{layer}.mlp.layers.{n}", f"{to}.mlp.fc{n + 1}", linear, layers) for n in (0, 1)]
    final = "final_attn_token_to_image"
    for proj in ("q_proj", "k_proj", "v_proj", "out_proj"):
        table.append(Rule(f"{_DECODER}.{final}.{proj}", f"{target}.transformer.{final}.{proj}", linear))
    table.append(Rule(f"{_DECODER}.norm_final_attn", f"{target}.transformer.norm_final_attn", norm))
    return table


def incomplete(infos: Mapping[str, TensorInfo], where: str) -> list[str]:
    """Problems of a file with some of SAM-2.1's tracking or mask parts but not all: it would not export as it came."""
    problems = []
    for reason in dict.fromkeys(rule.reason for rule in LEFT_OUT):
        parts = [rule for rule in LEFT_OUT if rule.reason == reason]
        absent = [rule.pattern for rule in parts if not any(rule.matches(name) for name in infos)]
        if len(absent) < len(parts):
            problems += [
                f"{where}: missing tensors: none matches {pattern} (a SAM-2.1 checkpoint has them)"
                for pattern in absent
            ]
    return problems


def read_geometry(infos: Mapping[str, TensorInfo], where: str, config_file: Path | None = None) -> Sam2Config:
    """The geometry of a state dict; what it cannot tell comes from `config_file` (yaml) or the published sizes.

    Raises:
        CheckpointError: not SAM-2, an unknown size without a yaml, or a yaml that disagrees with the state dict.
    """
    sizes = from_state(infos, where)
    trunk = sizes.pop("trunk")
    if config_file is not None:
        return _with_yaml(sizes, trunk, Path(config_file), where)
    known = PUBLISHED.get((trunk["embed_dim"], trunk["stages"]))
    if known is None:
        sizes = ", ".join(f"{name}: {key[0]} {key[1]}" for key, (name, _) in PUBLISHED.items())
        raise CheckpointError(
            [
                f"{where}: embed_dim {trunk['embed_dim']}, stages {trunk['stages']} is none of the published sizes "
                f"({sizes}); give its yaml with --sam2-config FILE.yaml, or put it beside the file under the same name"
            ]
        )
    name, rest = known
    if trunk["first_window"] != rest["window_spec"][0]:
        raise CheckpointError([f"{where}: window {trunk['first_window']}, {name} has {rest['window_spec'][0]}"])
    return Sam2Config(hiera=hiera(trunk, rest), **sizes)


def hiera(trunk: dict, rest: dict) -> HieraConfig:
    """The trunk's geometry: `trunk` from the tensors, `rest` from elsewhere."""
    return HieraConfig(
        embed_dim=trunk["embed_dim"],
        stages=trunk["stages"],
        window_pos_embed_bkg_spatial_size=trunk["background"],
        **rest,
    )


def from_state(infos: Mapping[str, TensorInfo], where: str) -> dict:
    """What names and shapes tell: the values of a `Sam2Config`, and under "trunk" those of its trunk.

    Raises:
        CheckpointError: tensors that every SAM-2.1 has are missing.
    """
    layer = f"{_DECODER}.layers"
    needed = dict(
        patch=f"{_TRUNK}.patch_embed.proj.weight",
        background=f"{_TRUNK}.pos_embed",
        window=f"{_TRUNK}.pos_embed_window",
        neck="image_encoder.neck.convs.0.conv.weight",
        mlp=f"{layer}.0.mlp.layers.0.weight",
        cross=f"{layer}.0.cross_attn_token_to_image.q_proj.weight",
        mask="sam_prompt_encoder.mask_downscaling.3.weight",
        tokens="sam_mask_decoder.mask_tokens.weight",
    )
    refuse(
        f"{where}: missing tensor {name}: not a whole SAM-2.1 state dict"
        for name in needed.values()
        if name not in infos
    )
    shape = {key: infos[name].shape for key, name in needed.items()}
    blocks = _indices(infos, rf"{re.escape(_TRUNK)}\.blocks\.(\d+)\..+")
    starts = [0, *_indices(infos, rf"{re.escape(_TRUNK)}\.blocks\.(\d+)\.proj\.weight"), len(blocks)]
    refuse([] if all(shape.values()) and len(shape["background"]) == 4 else [f"{where}: scalars where weights belong"])
    width = shape["neck"][0]
    return dict(
        trunk=dict(
            embed_dim=shape["patch"][0],
            stages=tuple(b - a for a, b in itertools.pairwise(starts)),
            background=shape["background"][-2:],
            first_window=shape["window"][-1],
        ),
        d_model=width,
        decoder_depth=len(_indices(infos, rf"{re.escape(layer)}\.(\d+)\..+")),
        decoder_mlp_dim=shape["mlp"][0],
        attention_downsample_rate=width // max(shape["cross"][0], 1),
        mask_in_chans=shape["mask"][0],
        num_mask_tokens=shape["tokens"][0],
    )


def _indices(infos: Mapping[str, TensorInfo], pattern: str) -> list[int]:
    return sorted({int(m[1]) for name in infos if (m := re.fullmatch(pattern, name))})


def _with_yaml(sizes: dict, trunk: dict, file: Path, where: str) -> Sam2Config:
    document = _read_yaml(file)
    model = document["model"]
    encoder = model["image_encoder"]
    stated = {**_TRUNK_DEFAULTS, **{k: v for k, v in encoder["trunk"].items() if k in _TRUNK_DEFAULTS}}
    stated = {k: tuple(v) if isinstance(v, list) else v for k, v in stated.items()}
    neck = encoder.get("neck", {})
    pairs = [
        ("image_encoder.trunk.embed_dim", stated["embed_dim"], trunk["embed_dim"]),
        ("image_encoder.trunk.stages", stated["stages"], trunk["stages"]),
        ("image_encoder.trunk.window_spec[0]", stated["window_spec"][0], trunk["first_window"]),
        (
            "image_encoder.trunk.window_pos_embed_bkg_spatial_size",
            stated["window_pos_embed_bkg_spatial_size"],
            tuple(trunk["background"]),
        ),
        ("image_encoder.neck.d_model", neck.get("d_model", sizes["d_model"]), sizes["d_model"]),
    ]
    refuse(f"{file}: {key} is {yaml_has}, but {where} has {has}" for key, yaml_has, has in pairs if yaml_has != has)
    rest = {key: stated[key] for key in ("num_heads", "global_att_blocks", "window_spec")}
    return Sam2Config(
        hiera=hiera(trunk, rest),
        image_size=model.get("image_size", 512),
        fpn_top_down_levels=tuple(neck.get("fpn_top_down_levels") or range(len(trunk["stages"]))),
        decoder_heads=document.get(OWN_KEY, {}).get("decoder_heads", META_DECODER_HEADS),
        **sizes,
    )


def _read_yaml(file: Path) -> dict:
    try:
        document = yaml.safe_load(file.read_text())
        document["model"]["image_encoder"]["trunk"].items()
        document.get(OWN_KEY, {}).items()
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        reason = f"expected a SAM-2 config with model.image_encoder.trunk ({error!r})"
        raise CheckpointError([f"{file}: {reason}"]) from error
    return document
