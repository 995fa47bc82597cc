"""The yaml that Meta's code builds a SAM-2.1 from, for models whose own yaml is not at hand."""

from collections.abc import Mapping

import yaml

from converters.mapped_file import TensorInfo
from virtue_jax.config import Sam2Config

_MODELING = "sam2.modeling"

# Meta's code builds its mask decoder with this many heads, which neither yaml nor weights tell. A model with another
# number says so under a key of ours, beside the `model` that Meta's code reads.
META_DECODER_HEADS = 8
OWN_KEY = "virtue_jax"


def sam2_yaml(config: Sam2Config, carried: Mapping[str, TensorInfo]) -> str:
    """The yaml of `config`; the sizes of the tracking modules from their carried tensors, else as published."""
    sizes = _tracking_sizes(config.d_model, carried)
    width, memory = config.d_model, sizes["memory"]
    hiera = config.hiera
    model = {
        "_target_": f"{_MODELING}.sam2_base.SAM2Base",
        "image_encoder": {
            "_target_": f"{_MODELING}.backbones.image_encoder.ImageEncoder",
            "scalp": 1,
            "trunk": {
                "_target_": f"{_MODELING}.backbones.hieradet.Hiera",
                "embed_dim": hiera.embed_dim,
                "num_heads": hiera.num_heads,
                "stages": list(hiera.stages),
                "global_att_blocks": list(hiera.global_att_blocks),
                "window_spec": list(hiera.window_spec),
                "window_pos_embed_bkg_spatial_size": list(hiera.window_pos_embed_bkg_spatial_size),
            },
            "neck": {
                "_target_": f"{_MODELING}.backbones.image_encoder.FpnNeck",
                "position_encoding": _sine(width),
                "d_model": width,
                "backbone_channel_list": list(reversed(hiera.stage_dims)),
                "fpn_top_down_levels": list(config.fpn_top_down_levels),
                "fpn_interp_model": "nearest",
            },
        },
        "memory_attention": _memory_attention(width, memory, sizes),
        "memory_encoder": _memory_encoder(width, memory, sizes["fuser_layers"]),
        "num_maskmem": sizes["frames"],
        "image_size": config.image_size,
        **_TRACKING_OPTIONS,
    }
    document = {"model": model}
    if config.decoder_heads != META_DECODER_HEADS:
        document[OWN_KEY] = {"decoder_heads": config.decoder_heads}
    return "# @package _global_\n" + yaml.safe_dump(document, sort_keys=False)


# How the published SAM-2.1 configs set the tracker; a strict load needs the modules that these switches create.
_TRACKING_OPTIONS = {
    "sigmoid_scale_for_mem_enc": 20.0,
    "sigmoid_bias_for_mem_enc": -10.0,
    "use_mask_input_as_output_without_sam": True,
    "directly_add_no_mem_embed": True,
    "no_obj_embed_spatial": True,
    "use_high_res_features_in_sam": True,
    "multimask_output_in_sam": True,
    "iou_prediction_use_sigmoid": True,
    "use_obj_ptrs_in_encoder": True,
    "add_tpos_enc_to_obj_ptrs": True,
    "proj_tpos_enc_in_obj_ptrs": True,
    "use_signed_tpos_enc_to_obj_ptrs": True,
    "only_obj_ptrs_in_the_past_for_eval": True,
    "pred_obj_scores": True,
    "pred_obj_scores_mlp": True,
    "fixed_no_obj_ptr": True,
    "multimask_output_for_tracking": True,
    "use_multimask_token_for_obj_ptr": True,
    "multimask_min_pt_num": 0,
    "multimask_max_pt_num": 1,
    "use_mlp_for_obj_ptr_proj": True,
    "compile_image_encoder": False,
}


def _tracking_sizes(width: int, carried: Mapping[str, TensorInfo]) -> dict[str, int]:
    def size(name: str, published: int) -> int:
        return carried[name].shape[0] if name in carried else published

    def layers(prefix: str, published: int) -> int:
        indices = {name.split(".")[prefix.count(".")] for name in carried if name.startswith(prefix)}
        return len(indices) or published

    return {
        "memory": carried["no_obj_embed_spatial"].shape[1] if "no_obj_embed_spatial" in carried else width // 4,
        "frames": size("maskmem_tpos_enc", 7),
        "feedforward": size("memory_attention.layers.0.linear1.weight", 2048),
        "attention_layers": layers("memory_attention.layers.", 4),
        "fuser_layers": layers("memory_encoder.fuser.layers.", 2),
    }


def _sine(features: int) -> dict:
    target = f"{_MODELING}.position_encoding.PositionEmbeddingSine"
    return {"_target_": target, "num_pos_feats": features, "normalize": True, "scale": None, "temperature": 10000}


def _rope_attention(width: int, **more) -> dict:
    return {
        "_target_": f"{_MODELING}.sam.transformer.RoPEAttention",
        "rope_theta": 10000.0,
        "feat_sizes": [64, 64],
        "embedding_dim": width,
        "num_heads": 1,
        "downsample_rate": 1,
        "dropout": 0.1,
        **more,
    }


def _memory_attention(width: int, memory: int, sizes: dict[str, int]) -> dict:
    return {
        "_target_": f"{_MODELING}.memory_attention.MemoryAttention",
        "d_model": width,
        "pos_enc_at_input": True,
        "layer": {
            "_target_": f"{_MODELING}.memory_attention.MemoryAttentionLayer",
            "activation": "relu",
            "dim_feedforward": sizes["feedforward"],
            "dropout": 0.1,
            "pos_enc_at_attn": False,
            "self_attention": _rope_attention(width),
            "d_model": width,
            "pos_enc_at_cross_attn_keys": True,
            "pos_enc_at_cross_attn_queries": False,
            "cross_attention": _rope_attention(width, rope_k_repeat=True, kv_in_dim=memory),
        },
        "num_layers": sizes["attention_layers"],
    }


def _memory_encoder(width: int, memory: int, fuser_layers: int) -> dict:
    block = {
        "_target_": f"{_MODELING}.memory_encoder.CXBlock",
        "dim": width,
        "kernel_size": 7,
        "padding": 3,
        "layer_scale_init_value": 1e-6,
        "use_dwconv": True,
    }
    downsampler = {
        "_target_": f"{_MODELING}.memory_encoder.MaskDownSampler",
        "kernel_size": 3,
        "stride": 2,
        "padding": 1,
        "embed_dim": width,
    }
    return {
        "_target_": f"{_MODELING}.memory_encoder.MemoryEncoder",
        "in_dim": width,
        "out_dim": memory,
        "position_encoding": _sine(memory),
        "mask_downsampler": downsampler,
        "fuser": {"_target_": f"{_MODELING}.memory_encoder.Fuser", "layer": block, "num_layers": fuser_layers},
    }
