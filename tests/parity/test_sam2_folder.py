"""SAM-2 folders that `transformers` saves are the same SAM-2 as Meta's files, in weights, geometry and on export."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from sam2_transformers import in_meta_names, torch_config
from transformers import Sam2Model, Sam2VideoConfig, Sam2VideoModel

from converters import sam2, sam2_transformers
from converters.errors import CheckpointError
from converters.exporting import ExportRequest
from converters.exporting import run as export
from converters.importing import ImportRequest, open_request, run
from converters.inspecting import inspect
from converters.mapped_file import TensorInfo
from converters.plan import read_state
from converters.rules import cover, expand
from converters.sources import ArraySource
from virtue_jax.config import HieraConfig, Sam2Config, VirtueConfig
from virtue_jax.model_directory import load_config, parameter_shapes

pytestmark = pytest.mark.parity

ODD = Sam2Config(
    HieraConfig(8, 2, (1, 1, 2, 1), (), (6, 4, 10, 5), (5, 9)),
    d_model=32,
    image_size=192,
    fpn_top_down_levels=(0, 1, 2, 3),
    decoder_heads=2,
    decoder_mlp_dim=40,
    attention_downsample_rate=1,
    mask_in_chans=24,
)


@pytest.fixture(scope="module")
def tiny(golden):
    return golden / "tiny"


@pytest.fixture(scope="module")
def tiny_config(tiny) -> VirtueConfig:
    return open_request(request(tiny, tiny / "sam2_tiny.pt")).config


def request(tiny, sam2_path, out="unused", **changes) -> ImportRequest:
    return ImportRequest(out=out, sam2=sam2_path, vlm=tiny / "vlm", **changes)


def random_model(config: Sam2Config, kind=Sam2Model, **video):
    torch.manual_seed(1)
    settings = torch_config(config)
    settings.mask_decoder_config.iou_head_hidden_dim = 256
    if kind is Sam2VideoModel:
        parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
        settings = Sam2VideoConfig(**{part: getattr(settings, part).to_dict() for part in parts}, **video)
    model = kind(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
        shared = model.shared_image_embedding.positional_embedding
        shared.normal_()
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(shared)
    return model


def tiny_video_model(config: Sam2Config):
    """A `Sam2VideoModel` with the tracking modules of the golden checkpoint."""
    return random_model(
        config,
        Sam2VideoModel,
        image_size=config.image_size,
        memory_attention_hidden_size=32,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=64,
        memory_encoder_hidden_size=32,
        memory_encoder_output_channels=8,
        mask_downsampler_embed_dim=32,
        memory_fuser_embed_dim=32,
        memory_fuser_intermediate_dim=128,
        memory_fuser_num_layers=1,
    )


@pytest.mark.parametrize("geometry", ["golden", "odd"])
def test_a_saved_sam2_model_has_its_geometry_and_weights(tiny, tiny_config, tmp_path, geometry):
    config = tiny_config.sam2 if geometry == "golden" else ODD
    model = random_model(config)
    model.save_pretrained(tmp_path / "sam")
    wanted = ArraySource(in_meta_names(model))
    for path in (tmp_path / "sam", tmp_path / "sam/model.safetensors"):
        opened = open_request(request(tiny, path))
        assert opened.config.sam2 == config
        state = read_state(opened)
        for entry in expand(sam2.rules(config)):
            value = entry.pack([wanted.read(name) for name in entry.sources])
            np.testing.assert_array_equal(state[entry.target], value, err_msg=entry.target)


def test_a_video_model_imports_whole_and_exports_as_metas_file(tiny, tiny_config, tmp_path):
    model = tiny_video_model(tiny_config.sam2)
    model.save_pretrained(tmp_path / "sam")
    run(request(tiny, tmp_path / "sam", tmp_path / "model"))
    assert load_config(tmp_path / "model").sam2 == tiny_config.sam2
    export(ExportRequest(model=tmp_path / "model", out=tmp_path / "out"))
    exported = torch.load(tmp_path / "out/sam2.pt", weights_only=True)["model"]
    golden = torch.load(tiny / "sam2_tiny.pt", weights_only=True)["model"]
    assert set(exported) == set(golden)
    # transformers builds the cross attention to the memory 64 wide, whatever its config says.
    other = {name for name, x in exported.items() if x.shape != golden[name].shape}
    assert other == {f"memory_attention.layers.0.cross_attn_image.{kind}_proj.weight" for kind in "kv"}
    for name, tensor in in_meta_names(model).items():
        np.testing.assert_array_equal(exported[name].numpy(), tensor, err_msg=name)
    again = open_request(request(tiny, tmp_path / "out/sam2.pt", sam2_config=tmp_path / "out/sam2.yaml"))
    assert again.config.sam2 == tiny_config.sam2


def test_an_image_model_imports_and_exports_without_the_tracking_parts(tiny, tiny_config, tmp_path):
    model = random_model(tiny_config.sam2)
    model.save_pretrained(tmp_path / "sam")
    run(request(tiny, tmp_path / "sam", tmp_path / "model"))
    export(ExportRequest(model=tmp_path / "model", out=tmp_path / "out"))
    exported = torch.load(tmp_path / "out/sam2.pt", weights_only=True)["model"]
    assert set(exported) == set(in_meta_names(model))
    assert open_request(request(tiny, tmp_path / "out/sam2.pt")).config.sam2 == tiny_config.sam2


@pytest.mark.parametrize("size", ["t", "s", "b+", "l"])
def test_every_published_size_is_covered_exactly(golden, tiny_config, tmp_path, size):
    (width, stages), (_, rest) = next(item for item in sam2.PUBLISHED.items() if item[1][0].endswith(f"_{size}"))
    background = (7, 7) if size in "tsl" else (14, 14)
    hiera = HieraConfig(width, stages=stages, window_pos_embed_bkg_spatial_size=background, **rest)
    config = torch_config(Sam2Config(hiera))
    config.mask_decoder_config.iou_head_hidden_dim = 256
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        tensors = Sam2Model(config).state_dict()
    infos = {
        sam2_transformers.meta_name(name): TensorInfo(tuple(x.shape), np.dtype(np.float32), tmp_path)
        for name, x in tensors.items()
    }
    ours = sam2_transformers.read_geometry(infos, "in memory", tmp_path / "config.json")
    assert ours == Sam2Config(hiera)
    shapes = parameter_shapes(dataclasses.replace(tiny_config, sam2=ours))
    targets = {path: shape for path, shape in shapes.items() if path.startswith("sam2.")}
    problems, _ = cover(expand(sam2.rules(ours, point_table=True)), sam2.LEFT_OUT, infos, targets, "in memory")
    assert problems == []
    file = golden / f"full_size/sam2.1_hiera_{size}.json"
    if file.is_file():
        metas = json.loads(file.read_text())["tensors"]
        assert {name: list(x.shape) for name, x in infos.items() if name != sam2.POINT_TABLE} == {
            name: shape for name, shape in metas.items() if name in infos
        }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="sam3"), "model_type is 'sam3', expected one of sam2, sam2_video"),
        (lambda c: c["vision_config"]["backbone_config"].update(hidden_size=16), "hidden_size is 16, expected 8"),
        (lambda c: c["vision_config"]["backbone_config"].update(query_stride=[4, 4]), "query_stride is [4, 4]"),
        (lambda c: c["prompt_encoder_config"].update(image_size=512), "image_size is 1024, expected 512"),
        (lambda c: c["mask_decoder_config"].update(iou_head_depth=2), "iou_head_depth is 2, expected 3"),
    ],
)
def test_a_config_that_disagrees_with_the_weights_is_refused(tiny, tiny_config, tmp_path, change, message):
    random_model(tiny_config.sam2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        open_request(request(tiny, tmp_path))
    assert f"{tmp_path / 'config.json'}: " in str(caught.value)
    assert message in str(caught.value)


def test_a_folder_of_metas_files_is_refused_with_the_file_to_give(tiny, tmp_path):
    (tmp_path / "sam2.1_hiera_large.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"give one of Meta's files itself: .*/sam2\.1_hiera_large\.pt"):
        open_request(request(tiny, tmp_path))


def test_a_yaml_beside_a_folder_of_transformers_is_refused_and_inspect_names_the_folder(tiny, tiny_config, tmp_path):
    random_model(tiny_config.sam2).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="leave it out"):
        open_request(request(tiny, tmp_path, sam2_config=tiny / "sam2_tiny.yaml"))
    (finding,) = inspect(tmp_path)
    assert "transformers" in finding.kind
    assert finding.geometry["sam2"] == tiny_config.sam2
