"""SAM-2 against the arrays of the original PyTorch implementation, stage by stage, both behaviours."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from golden_files import ARRAYS, TINY, arrays, facts, stems
from sam2_from_meta import sam2_from_meta

from converters.sam2 import read_geometry
from converters.sources import open_source
from virtue_jax.batch import NO_TOKEN, NOT_A_POINT
from virtue_jax.data.encoding.prompts import point_grid
from virtue_jax.models.sam2 import Sam2

pytestmark = [pytest.mark.parity, pytest.mark.slow]

IMAGES = ["a", "b", "c"]
NOISE = [path.stem for path in ARRAYS.glob("sam_noise.npz")]  # absent from the subset in the repository
TOKENS = 12  # static count of sparse tokens that every prompt is padded to
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def cases(prefix: str) -> list[str]:
    """The cases with a visual prompt whose files are there."""
    return [name for name in stems(f"{prefix}_*") if "sparse" in arrays(name)]


RELEASED, PAPER = cases("case"), cases("paper")


def test_the_golden_folder_holds_cases_of_both_behaviours():
    assert RELEASED and PAPER


@functools.cache
def tiny_sam2() -> Sam2:
    source = open_source(TINY / "sam2_tiny.pt")
    config = read_geometry(source.infos, "sam2_tiny.pt", TINY / "sam2_tiny.yaml")
    return sam2_from_meta(config, source)


@functools.cache
def tolerance(file: str, stage: str) -> float:
    """Ten times what other float32 kernels and float64 move the reference itself."""
    runs = facts(file).values()
    return 10 * max(run[stage]["max_abs"] for run in runs)


released_tolerance = functools.partial(tolerance, "noise_floor")
paper_tolerance = functools.partial(tolerance, "paper_noise_floor")


@functools.cache
def encoder():
    graphdef, state = nnx.split(tiny_sam2())
    return jax.jit(lambda image: nnx.merge(graphdef, state).image_features(image))


@functools.cache
def fuser():
    """(image_embed, points, labels, has_mask, masks) -> (sparse, dense, map, tokens)."""
    graphdef, state = nnx.split(tiny_sam2())

    def run(image_embed, points, labels, has_mask, masks):
        model = nnx.merge(graphdef, state)
        sparse, dense = model.encode_prompts(points, labels, has_mask, masks)
        return sparse, dense, *model.fuse(image_embed, sparse, labels, dense)

    return jax.jit(run)


def channels_first(x) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, -3)


def sam_input(image: torch.Tensor) -> np.ndarray:
    """float[3, H, W] -> float32[1, 1024, 1024, 3] as the golden README describes."""
    resized = torch.nn.functional.interpolate(image[None], (1024, 1024), mode="bilinear", antialias=True)
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    return ((resized - mean) / std).permute(0, 2, 3, 1).numpy()


def from_patches(pixel_values: np.ndarray, grid_thw: np.ndarray) -> torch.Tensor:
    """Qwen's patches back to the image that they were cut from, float[3, H, W]."""
    _, h, w = grid_thw[0]
    patches = torch.from_numpy(pixel_values).reshape(h // 2, w // 2, 2, 2, 3, 2, 14, 14)[..., 0, :, :]
    return patches.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, h * 14, w * 14)


def noise_input(seed: int) -> np.ndarray:
    noise = np.random.RandomState(seed).standard_normal((1, 3, 1024, 1024)).astype(np.float32)
    return np.moveaxis(noise, 1, -1)


def assert_sam_input(image: np.ndarray, golden: dict, prefix: str = ""):
    """That the test's own preparation is the reference's; otherwise nothing after it means anything."""
    x = channels_first(image)[0]
    crops = {
        "s16": x[:, ::16, ::16],
        "tl": x[:, :32, :32],
        "mid": x[:, 500:532, 490:522],
        "br": x[:, -32:, -32:],
    }
    for name, crop in crops.items():
        np.testing.assert_allclose(crop, golden[f"{prefix}sam_input_{name}"], rtol=0, atol=2e-5)


def assert_map(ours, golden: dict, name: str, atol: float):
    """A map [H, W, C] against its strided copy `NAME_sN` (or whole `NAME`) and its channel statistics."""
    x = channels_first(ours)
    strides = {key: int(m[1] or 1) for key in golden if (m := re.fullmatch(rf"{name}(?:_s(\d+))?", key))}
    assert strides, f"no golden array for {name}"
    for key, stride in strides.items():
        expected = golden[key].reshape(golden[key].shape[-3:])
        np.testing.assert_allclose(x[:, ::stride, ::stride], expected, rtol=0, atol=atol, err_msg=key)
    if f"{name}_stats" in golden:
        stats = np.stack([x.mean((1, 2), dtype=np.float64), x.std((1, 2), dtype=np.float64)])
        np.testing.assert_allclose(stats, golden[f"{name}_stats"].reshape(stats.shape), rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("source", IMAGES + NOISE)
def test_image_encoder_agrees_at_every_stage(source):
    if source in IMAGES:
        prefix, golden = f"{source}/", arrays("images")
        image = sam_input(from_patches(golden[f"{prefix}pixel_values"], golden[f"{prefix}grid_thw"]))
        assert_sam_input(image, golden, prefix)
    else:
        prefix, golden = "", arrays(source)
        image = noise_input(int(golden["noise_seed"]))
        assert_positions(golden)
    features = encoder()(image)
    for i, level in enumerate(features["trunk"]):
        assert_map(level[0], golden, f"{prefix}trunk{i}", released_tolerance("image_embed"))
    for i, level in enumerate(features["fpn"]):
        assert_map(level[0], golden, f"{prefix}fpn{i}", released_tolerance("image_embed"))
    if source in IMAGES:
        assert_map(features["image_embed"][0], golden, f"{prefix}image_embed", released_tolerance("image_embed"))


def assert_positions(golden: dict):
    """The codes of places and the points that stand for no prompt."""
    model = tiny_sam2()
    np.testing.assert_allclose(point_grid(3, 1024), golden["point_grid"], rtol=1e-6)
    dense = channels_first(model.prompt_encoder.dense_positions())
    np.testing.assert_allclose(dense, golden["dense_pe"], rtol=0, atol=released_tolerance("sparse"))
    hiera = np.asarray(model.trunk.position_embedding(256, 256))[::4, ::4]
    np.testing.assert_allclose(hiera, golden["hiera_pos_embed_s4"], rtol=0, atol=released_tolerance("image_embed"))


def padded_prompt(golden: dict, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The case's points, SAM's padding token, NO_TOKEN up to the static count; a single prompt serves all rows."""
    points = np.full((rows, TOKENS, 2), 777.0, np.float32)
    labels = np.full((rows, TOKENS), NO_TOKEN, np.int32)
    if "prompt_coords" in golden:
        count = golden["prompt_coords"].shape[1]
        points[:, :count] = golden["prompt_coords"]
        labels[:, :count] = golden["prompt_labels"]
        labels[:, count] = NOT_A_POINT
    return points, labels


def assert_fused(out, golden: dict, sparse_atol: float, atol: float):
    """Sparse tokens, two-way tokens and map, less what is only padding of ours."""
    sparse, _, fused, tokens = map(np.asarray, out)
    model, count = tiny_sam2(), golden["sparse"].shape[1]
    np.testing.assert_allclose(sparse[: len(golden["sparse"]), :count], golden["sparse"], rtol=0, atol=sparse_atol)
    assert not sparse[:, count:].any()
    entering = np.asarray(model.mask_decoder.tokens(jnp.asarray(sparse)))
    kept = golden["twoway_tokens_in"].shape[1]
    np.testing.assert_allclose(entering[:, :kept], golden["twoway_tokens_in"], rtol=0, atol=sparse_atol)
    np.testing.assert_allclose(tokens[:, :kept], golden["twoway_tokens_out"], rtol=0, atol=atol)
    for row, one in enumerate(fused):
        of_row = {
            k: v.reshape(len(fused), *v.shape[-2:])[row] if k.endswith("stats") else v[row]
            for k, v in golden.items()
            if k.startswith("mask_embeddings")
        }
        assert_map(one, of_row, "mask_embeddings", atol)


@pytest.mark.parametrize("case", RELEASED)
def test_released_prompts_agree(case):
    golden = arrays(case)
    names = facts("cases")["cases"][case.removeprefix("case_")]["images"]
    embeds = [np.moveaxis(arrays("images")[f"{name}/image_embed"], 0, -1) for name in names if name is not None]
    points, labels = padded_prompt(golden, len(embeds))
    out = fuser()(np.stack(embeds), points, labels, None, None)
    assert_dense(out[1], golden, 0.0)
    assert_fused(out, golden, released_tolerance("sparse"), released_tolerance("twoway_out"))


def assert_dense(dense, golden: dict, atol: float):
    if "dense_value" in golden:
        assert (np.asarray(dense) == golden["dense_value"]).all()
    else:
        assert_map(dense[0], golden, "dense", atol)


@functools.cache
def paper_features(image: bytes, shape: tuple[int, ...]):
    raw = np.frombuffer(image, np.uint8).reshape(shape)
    x = sam_input(torch.from_numpy(raw.copy()).permute(2, 0, 1).float() / 255)
    return x, encoder()(x)["image_embed"]


@pytest.mark.parametrize("case", PAPER)
def test_paper_prompts_agree_from_the_raw_image_on(case):
    golden = arrays(case)
    image, embed = paper_features(golden["raw_0"].tobytes(), golden["raw_0"].shape)
    assert_sam_input(image, golden)
    assert_map(embed[0], golden, "image_embed", paper_tolerance("image_embed"))
    points, labels = padded_prompt(golden, 1)
    out = fuser()(embed, points, labels, *mask_arguments(golden))
    assert_dense(out[1], golden, paper_tolerance("dense"))
    assert_fused(out, golden, paper_tolerance("sparse"), paper_tolerance("mask_embeddings"))


def mask_arguments(golden: dict) -> tuple[np.ndarray, np.ndarray]:
    """(has_mask, masks); where there is no mask, values that must not be read."""
    if "mask_256" not in golden:
        return np.array([False]), np.full((1, 256, 256), 5.0, np.float32)
    return np.array([True]), np.where(golden["mask_256"] > 0, 10.0, -10.0).astype(np.float32)[None]


def test_an_empty_point_is_two_padding_tokens():
    golden = arrays("paper_mask")
    _, embed = paper_features(golden["raw_0"].tobytes(), golden["raw_0"].shape)
    labels = np.full((1, TOKENS), NO_TOKEN, np.int32)
    labels[:, :2] = NOT_A_POINT
    sparse, _, fused, _ = fuser()(embed, np.zeros((1, TOKENS, 2), np.float32), labels, *mask_arguments(golden))
    expected = golden["emptypoint_sparse"]
    np.testing.assert_allclose(sparse[:, :2], expected, rtol=0, atol=paper_tolerance("sparse"))
    only = {"mask_embeddings_s4": golden["emptypoint_mask_embeddings_s4"][0]}
    assert_map(fused[0], only, "mask_embeddings", paper_tolerance("mask_embeddings"))
