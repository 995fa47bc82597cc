"""Vision tower and language model against the arrays of the original PyTorch implementation, both behaviours."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_files import TINY, arrays, facts, stems
from qwen_checkpoint import load_qwen, pack_images

from virtue_jax.config import HieraConfig, Sam2Config, VirtueConfig
from virtue_jax.data.encoding.qwen_image import normalise_patches, qwen_image
from virtue_jax.ops.rotary import patch_angles

pytestmark = [pytest.mark.parity, pytest.mark.slow]

RELEASED = stems("case_*")
PAPER = [name for name in stems("paper_*") if name != "paper_train"]
FIRST_CALL = [name for name in RELEASED if name != "case_mrope"]
IMAGE_NAMES = ("a", "b", "c")
EMBEDDING_TOLERANCE = 1e-5


def test_the_golden_folder_holds_cases_of_both_behaviours():
    assert RELEASED and PAPER


def tolerance(name: str, stage: str) -> float:
    """Ten times what other float32 kernels and float64 move the reference itself."""
    runs = facts("paper_noise_floor" if name.startswith("paper") else "noise_floor")
    return 10 * max(run[stage]["max_abs"] for run in runs.values())


@functools.cache
def qwen(adapted: bool):
    return load_qwen(TINY / "vlm", TINY / "adapter" if adapted else None)


@functools.cache
def vision_tower():
    graphdef, state = nnx.split(qwen(False).vision)

    def run(patches, yx, segments):
        tower = nnx.merge(graphdef, state)
        last_block = tower.encode(patches, yx, segments)
        return tower.patch_embed(patches)[0], last_block[0], tower.merger(last_block)[0]

    return jax.jit(run)


@functools.cache
def language_model(adapted: bool):
    graphdef, state = nnx.split(qwen(adapted).text)
    return jax.jit(lambda x, positions, segments: nnx.merge(graphdef, state).hidden_states(x, positions, segments))


def vision_tokens(pixel_values, grid_thw) -> np.ndarray:
    length = -(-len(pixel_values) // 384) * 384
    return np.asarray(vision_tower()(*pack_images(pixel_values, grid_thw, length))[2])[: len(pixel_values) // 4]


def hidden_states(adapted: bool, inputs, positions, mask) -> np.ndarray:
    """[layers + 1, S, H] of one example: inputs[S, H], positions[3, S], mask[S]; run in a longer, padded row."""
    length = len(mask)
    pad = -length % 384

    def padded(x, axis):
        return jnp.asarray(np.pad(x, [(0, pad if a == axis else 0) for a in range(x.ndim)]))[None]

    row = padded(inputs, 0), padded(positions, 1), padded(mask.astype(np.int32), 0)
    return np.asarray(language_model(adapted)(*row))[:, 0, :length]


def embedding(hidden: np.ndarray) -> np.ndarray:
    return hidden[-1, -1] / np.linalg.norm(hidden[-1, -1])


def splice(input_ids, vision, seg_tokens) -> np.ndarray:
    """Segmentation tokens, then words with the vision tokens in the places of `<|image_pad|>`."""
    text = qwen(False).text
    inputs = np.array(text.embed(jnp.asarray(input_ids)))
    if vision is not None:
        inputs[input_ids == text.config.image_token_id] = vision
    return inputs if seg_tokens is None else np.concatenate([seg_tokens, inputs])


def released_rows(name: str):
    """(row, inputs[S, H]) of every row of a case, made from its token ids, image and segmentation tokens.

    The text rows of `mixed` are what the released code makes of them by accident: their inputs are taken as given.
    """
    case = arrays(name)
    images = facts("cases")["cases"][name.removeprefix("case_")]["images"]
    for row, image in enumerate(images):
        if name == "case_mixed" and image is None:
            yield row, case["inputs_embeds"][row]
        elif image is None:
            yield row, splice(case["input_ids"][row], None, None)
        else:
            pixels = arrays("images")
            vision = vision_tokens(pixels[f"{image}/pixel_values"], pixels[f"{image}/grid_thw"])
            yield row, splice(case["input_ids"][row], vision, case["seg_tokens"][row])


def paper_inputs(name: str) -> np.ndarray:
    case = arrays(name)
    vision = None
    if "grid_thw" in case:
        pixel_values = case["pixel_values"] if "pixel_values" in case else preprocessed(case["raw_0"])
        vision = vision_tokens(pixel_values, case["grid_thw"])
    return splice(case["input_ids"][0], vision, case["seg_tokens"][0] if "seg_tokens" in case else None)


def preprocessed(raw: np.ndarray) -> np.ndarray:
    """pixel_values[P, 1176] of an image for which the golden file has but every eighth row."""
    model = qwen(False)
    config = VirtueConfig(Sam2Config(HieraConfig(8, 1, (1, 2, 3, 2), (4,))), model.vision.config, model.text.config)
    patches = normalise_patches(qwen_image(raw, config, "golden").patches).reshape(-1, 3, 1, 196)
    return np.repeat(patches, 2, axis=2).reshape(len(patches), -1)


def test_vision_tower_of_several_images_in_one_row():
    images = arrays("images")
    grids = np.concatenate([images[f"{name}/grid_thw"] for name in IMAGE_NAMES])
    pixels = np.concatenate([images[f"{name}/pixel_values"] for name in IMAGE_NAMES])
    patches, yx, segments = pack_images(pixels, grids, 640)
    patch_embed, last_block, tokens = vision_tower()(patches, yx, segments)
    config = qwen(False).vision.config
    got = {
        "vision_patch_embed": patch_embed,
        "vision_rope": patch_angles(yx, config.embed_dim // config.num_heads)[0],
        "vision_last_block": last_block,
        "vision_out": tokens,
    }
    for stage, array in got.items():
        expected = np.concatenate([images[f"{name}/{stage}"] for name in IMAGE_NAMES])
        np.testing.assert_allclose(
            array[: len(expected)], expected, atol=tolerance("images", "vision_out"), err_msg=stage
        )


@pytest.mark.parametrize("name", IMAGE_NAMES)
def test_vision_tower_of_one_image(name):
    images = arrays("images")
    got = vision_tokens(images[f"{name}/pixel_values"], images[f"{name}/grid_thw"])
    np.testing.assert_allclose(got, images[f"{name}/vision_out"], atol=tolerance("images", "vision_out"))


@pytest.mark.parametrize("name", [name for name in PAPER if not name.startswith("paper_text")])
def test_paper_vision_tokens(name):
    case = arrays(name)
    if "vision_out" in case:
        got, expected = vision_tokens(case["pixel_values"], case["grid_thw"]), case["vision_out"]
    else:
        pixel_values = preprocessed(case["raw_0"])
        np.testing.assert_allclose(pixel_values[::8], case["pixel_values_s8"], atol=1e-6)
        got, expected = vision_tokens(pixel_values, case["grid_thw"])[::4], case["vision_out_s4"]
    np.testing.assert_allclose(got, expected, atol=tolerance(name, "vision_out"))


@pytest.mark.parametrize("name", RELEASED)
def test_released_hidden_states_and_embedding(name):
    case = arrays(name)
    for row, inputs in released_rows(name):
        mask = case["lm_mask"][row]
        hidden = hidden_states(False, inputs, case["position_ids"][:, row], mask)
        if "hidden_states" in case:
            real = mask == 1
            expected = case["hidden_states"][:, row, real]
            np.testing.assert_allclose(hidden[:, real], expected, atol=tolerance(name, "hidden_last"))
        np.testing.assert_allclose(embedding(hidden), case["embedding"][row], atol=EMBEDDING_TOLERANCE)


@pytest.mark.parametrize("name", RELEASED)
def test_released_embedding_with_the_adapter(name):
    case = arrays(name)
    for row, inputs in released_rows(name):
        got = embedding(hidden_states(True, inputs, case["position_ids"][:, row], case["lm_mask"][row]))
        np.testing.assert_allclose(got, case["embedding_dora"][row], atol=EMBEDDING_TOLERANCE)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", FIRST_CALL)
def test_embedding_of_the_released_first_call(name, adapted):
    case = arrays(name)
    expected = case["embedding_dora_firstcall" if adapted else "embedding_firstcall"]
    for row, inputs in released_rows(name):
        hidden = hidden_states(adapted, inputs, case["position_ids_firstcall"][:, row], case["lm_mask"][row])
        np.testing.assert_allclose(embedding(hidden), expected[row], atol=EMBEDDING_TOLERANCE)


@pytest.mark.parametrize("name", [n for n in RELEASED if "embedding_nosam" in arrays(n)])
def test_embedding_without_segmentation(name):
    case = arrays(name)
    for row, inputs in released_rows(name):
        mask = case["attention_mask"][row]
        positions = np.tile(np.arange(len(mask)), (3, 1))
        got = embedding(hidden_states(False, inputs[256:], positions, mask))
        np.testing.assert_allclose(got, case["embedding_nosam"][row], atol=EMBEDDING_TOLERANCE)


@pytest.mark.parametrize("name", PAPER)
def test_paper_hidden_states_and_embedding(name):
    case = arrays(name)
    inputs, positions = paper_inputs(name), case["position_ids"][:, 0]
    mask = np.ones(len(inputs), np.int32)
    hidden = hidden_states(False, inputs, positions, mask)
    limit = tolerance(name, "last_hidden")
    if "hidden_states" in case:
        np.testing.assert_allclose(hidden, case["hidden_states"][:, 0], atol=limit)
    np.testing.assert_allclose(hidden[:, -1], case["last_hidden_layers"][:, 0], atol=limit)
    np.testing.assert_allclose(hidden[-1, -1], case["last_hidden"][0], atol=limit)
    np.testing.assert_allclose(embedding(hidden), case["embedding"][0], atol=EMBEDDING_TOLERANCE)
    adapted = hidden_states(True, inputs, positions, mask)
    np.testing.assert_allclose(adapted[-1, -1], case["last_hidden_dora"][0], atol=limit)
    np.testing.assert_allclose(embedding(adapted), case["embedding_dora"][0], atol=EMBEDDING_TOLERANCE)
