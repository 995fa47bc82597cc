"""SAM-2 as `transformers` saves it (`Sam2Model`, `Sam2VideoModel`): names as Meta's, config.json as geometry."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from converters import sam2
from converters.errors import CheckpointError, refuse
from converters.mapped_file import TensorInfo
from converters.sources import Source, open_folder, open_source
from virtue_jax.config import Sam2Config

_MODEL_TYPES = ("sam2", "sam2_video")
_MLP = r"(sam_mask_decoder\.(?:output_hypernetworks_mlps\.\d|iou_prediction_head|pred_obj_score_head)|obj_ptr_proj)"

# One after the other, each on what the one before left.
_RENAMES = [
    (r"^vision_encoder\.backbone\.patch_embed\.projection", "image_encoder.trunk.patch_embed.proj"),
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d)", r"image_encoder.neck.convs.\1.conv"),
    (r"^no_memory_embedding$", "no_mem_embed"),
    (r"^no_memory_positional_encoding$", "no_mem_pos_enc"),
    (r"^no_object_pointer$", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter$", "no_obj_embed_spatial"),
    (r"^memory_temporal_positional_encoding$", "maskmem_tpos_enc"),
    (r"^temporal_positional_encoding_projection_layer\.", "obj_ptr_tpos_proj."),
    (r"^object_pointer_proj\.", "obj_ptr_proj."),
    (
        r"^(prompt_encoder\.shared|shared_image)_embedding\.positional_embedding$",
        "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"^prompt_encoder\.point_embed\.weight$", sam2.POINT_TABLE),
    (r"^prompt_encoder\.mask_embed\.conv1", "sam_prompt_encoder.mask_downscaling.0"),
    (r"^prompt_encoder\.mask_embed\.layer_norm1", "sam_prompt_encoder.mask_downscaling.1"),
    (r"^prompt_encoder\.mask_embed\.conv2", "sam_prompt_encoder.mask_downscaling.3"),
    (r"^prompt_encoder\.mask_embed\.layer_norm2", "sam_prompt_encoder.mask_downscaling.4"),
    (r"^prompt_encoder\.mask_embed\.conv3", "sam_prompt_encoder.mask_downscaling.6"),
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (r"^mask_decoder\.", "sam_mask_decoder."),
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
    (rf"^{_MLP}\.proj_out\.", r"\1.layers.2."),
    (rf"^{_MLP}\.layers\.0\.", r"\1.layers.1."),
    (rf"^{_MLP}\.proj_in\.", r"\1.layers.0."),
    (r"\.mlp\.proj_in\.", ".mlp.layers.0."),
    (r"\.mlp\.proj_out\.", ".mlp.layers.1."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"^memory_encoder\.feature_projection\.", "memory_encoder.pix_feat_proj."),
    (r"^memory_encoder\.projection\.", "memory_encoder.out_proj."),
    (r"\.memory_fuser\.(layers\.\d+)\.depthwise_conv\.", r".fuser.\1.dwconv."),
    (r"\.memory_fuser\.(layers\.\d+)\.pointwise_conv(\d)\.", r".fuser.\1.pwconv\2."),
    (r"\.memory_fuser\.(layers\.\d+)\.scale$", r".fuser.\1.gamma"),
    (r"\.memory_fuser\.", ".fuser."),
    (r"\.layer_norm", ".norm"),
    (r"(attn\w*)\.o_proj\.", r"\1.out_proj."),
]
# A stage of the memory encoder's downsampler is a convolution, a norm and an activation of Meta's one sequence.
_DOWNSAMPLER = re.compile(r"^memory_encoder\.mask_downsampler\.layers\.(\d+)\.(conv|layer_norm)\.")
_LAST_DOWNSAMPLING = re.compile(r"^memory_encoder\.mask_downsampler\.final_conv\.")
_DOWNSAMPLER_STAGES = 4


def meta_name(name: str) -> str:
    """Meta's name of a tensor that `transformers` named; the four point embeddings stay one tensor, `POINT_TABLE`."""
    if match := _DOWNSAMPLER.match(name):
        place = 3 * int(match[1]) + (match[2] == "layer_norm")
        return f"memory_encoder.mask_downsampler.encoder.{place}.{name[match.end() :]}"
    if match := _LAST_DOWNSAMPLING.match(name):
        return f"memory_encoder.mask_downsampler.encoder.{3 * _DOWNSAMPLER_STAGES}.{name[match.end() :]}"
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def open_sam2(path: Path) -> tuple[Source, Path | None]:
    """The tensors of a SAM-2 under Meta's names, and the config.json of `transformers` if they came in its format.

    path: Meta's file, or the folder of a `Sam2Model` or `Sam2VideoModel`, or the weights in that folder.

    Raises:
        CheckpointError: no such file or folder, damaged files, or a folder of something else.
    """
    path = Path(path)
    if path.is_dir():
        metas = [] if (path / "config.json").is_file() else sorted(path.glob("sam2*.pt"))
        refuse(f"{path}: not a Sam2Model (no config.json); give one of Meta's files itself: {file}" for file in metas)
        return open_folder(path, meta_name), path / "config.json"
    source = open_source(path)
    if not any(name.startswith("vision_encoder.backbone.") for name in source.infos):
        return source, None
    return open_source(path, meta_name), path.parent / "config.json"


def is_sam2(folder: Path) -> bool:
    """Whether a folder's config.json is that of a `Sam2Model` or `Sam2VideoModel`."""
    try:
        return json.loads((folder / "config.json").read_text()).get("model_type") in _MODEL_TYPES
    except (OSError, ValueError, AttributeError):
        return False


def read_geometry(infos: Mapping[str, TensorInfo], where: str, config_file: Path) -> Sam2Config:
    """The geometry of a `Sam2Model`: sizes from its tensors (under Meta's names), the rest from its config.json.

    Raises:
        CheckpointError: not a SAM-2, a config.json that disagrees with the tensors, or features that are not supported.
    """
    values, sizes = _read_config(config_file), sam2.from_state(infos, where)
    trunk = sizes.pop("trunk")
    vision = values.get("vision_config") or {}
    backbone = vision.get("backbone_config") or {}
    prompt = values.get("prompt_encoder_config") or {}
    decoder = values.get("mask_decoder_config") or {}
    stages = len(trunk["stages"])
    heads, side = backbone.get("num_attention_heads", 1), _side(prompt.get("image_size", 1024))
    windows = tuple(_stated(backbone, "window_size_per_stage", (8, 4, 14, 7)))
    expected = [
        ("hidden_size", backbone.get("hidden_size", 96), trunk["embed_dim"]),
        ("blocks_per_stage", _stated(backbone, "blocks_per_stage", [1, 2, 7, 2]), list(trunk["stages"])),
        ("embed_dim_per_stage", backbone.get("embed_dim_per_stage"), _doubling(trunk["embed_dim"], stages)),
        ("num_attention_heads_per_stage", backbone.get("num_attention_heads_per_stage"), _doubling(heads, stages)),
        ("window_size_per_stage[0]", windows[0], trunk["first_window"]),
        ("query_stride", backbone.get("query_stride"), [2, 2]),
        ("num_query_pool_stages", backbone.get("num_query_pool_stages"), stages - 1),
        ("image_size", _side(backbone.get("image_size")), side),
        ("hidden_act", backbone.get("hidden_act"), "gelu"),
        ("fpn_hidden_size", vision.get("fpn_hidden_size"), sizes["d_model"]),
        ("prompt_encoder_config.patch_size", _side(prompt.get("patch_size")), 16),
        ("prompt_encoder_config.scale", prompt.get("scale"), 1),
        ("mask_decoder_config.iou_head_depth", decoder.get("iou_head_depth"), 3),
    ]
    refuse(
        f"{config_file}: {key} is {value!r}, expected {wanted!r}"
        for key, value, wanted in expected
        if value is not None and value != wanted
    )
    blocks = tuple(_stated(backbone, "global_attention_blocks", (5, 7, 9)))
    return Sam2Config(
        hiera=sam2.hiera(trunk, {"num_heads": heads, "global_att_blocks": blocks, "window_spec": windows}),
        image_size=side,
        fpn_top_down_levels=tuple(_stated(vision, "fpn_top_down_levels", (2, 3))),
        decoder_heads=decoder.get("num_attention_heads", 8),
        **sizes,
    )


def _stated(values: dict, key: str, default):
    """The value of a key, or what `transformers` takes where it is absent or null: that of Hiera-T."""
    return default if values.get(key) is None else values[key]


def _read_config(file: Path) -> dict:
    try:
        values = json.loads(file.read_text())
        kind = values.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError([f"{file}: expected the config.json of a Sam2Model ({error})"]) from error
    if kind not in _MODEL_TYPES:
        raise CheckpointError([f"{file}: model_type is {kind!r}, expected one of {', '.join(_MODEL_TYPES)}"])
    return values


def _side(size) -> object:
    """The side of a square that is one number or two equal ones; anything else as it is."""
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        return size[0]
    return size


def _doubling(first: int, stages: int) -> list[int]:
    return [first * 2**stage for stage in range(stages)]
