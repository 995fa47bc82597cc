import time

import numpy as np
import pytest

from virtue_jax.config import IMAGENET_MEAN, IMAGENET_STD
from virtue_jax.data.encoding.qwen_image import normalise, qwen_image
from virtue_jax.data.encoding.sam_image import resize, resize_weights, sam_image, sam_levels


def assert_matches(made: np.ndarray, golden: dict, atol: float, prefix: str = "") -> None:
    """float32[1024, 1024, 3] against the golden's strided map, crops and channel statistics."""
    channels = made.transpose(2, 0, 1)
    crops = {
        "s16": channels[:, ::16, ::16],
        "tl": channels[:, :32, :32],
        "mid": channels[:, 500:532, 490:522],
        "br": channels[:, -32:, -32:],
    }
    for name, crop in crops.items():
        np.testing.assert_allclose(crop, golden[f"{prefix}sam_input_{name}"], atol=atol, rtol=0)
    values = channels.reshape(3, -1).astype(np.float64)
    np.testing.assert_allclose(np.stack([values.mean(1), values.std(1)]), golden[f"{prefix}sam_input_stats"], atol=1e-5)


def test_raw_images_give_the_paper_goldens(arrays, golden):
    names = sorted(path.name for path in (golden / "tiny" / "golden").glob("paper_*.npz"))
    tried = [name for name in names if "sam_input_s16" in (case := arrays(name)) and "raw_0" in case]
    assert len(tried) >= 5
    atol = 10 * arrays("paper_noise_floor.json")["fp64"]["sam_input"]["max_abs"]
    for name in tried:
        case = arrays(name)
        assert_matches(sam_image(case["raw_0"], 1024), case, atol)


def test_qwen_pixels_give_the_released_goldens(arrays, tiny_config):
    images = arrays("images.npz")
    atol = 10 * arrays("noise_floor.json")["fp64"]["sam_input"]["max_abs"]
    for name in "abc":
        pixels = normalise(qwen_image(images[f"{name}/raw"], tiny_config, name).pixels)
        assert_matches(sam_image(pixels, 1024), images, atol, f"{name}/")


@pytest.mark.parametrize("length, size", [(1, 8), (7, 7), (5, 64), (64, 5), (1000, 1024), (3000, 1024)])
def test_weights_sum_to_one_and_stay_inside(length, size):
    sources, weights = resize_weights(length, size)
    assert sources.min() >= 0 and sources.max() < length
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)


def test_resize_agrees_with_its_definition_in_float64():
    pixels = np.random.default_rng(1).random((37, 50, 3), np.float32)
    expected = np.einsum("ih,jw,hwc->ijc", definition(37, 16), definition(50, 120), pixels.astype(np.float64))
    np.testing.assert_allclose(resize(pixels, 16, 120), expected, atol=1e-6)


def definition(length: int, size: int) -> np.ndarray:
    """float64[size, length]: a triangle filter around each output's half-pixel centre."""
    matrix = np.zeros((size, length))
    for i in range(size):
        for j in range(length):
            matrix[i, j] = max(0.0, 1 - abs((j + 0.5) - (i + 0.5) * length / size) / max(length / size, 1))
    return matrix / matrix.sum(1, keepdims=True)


def test_an_image_of_the_right_size_is_only_normalised_and_not_changed_in_place():
    pixels = np.random.default_rng(2).random((64, 64, 3), np.float32)
    kept = pixels.copy()
    made = sam_image(pixels, 64)
    np.testing.assert_array_equal(pixels, kept)
    np.testing.assert_allclose(made, (pixels - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD), atol=1e-6)


def test_what_is_made_is_written_where_it_is_wanted():
    pixels = np.random.default_rng(4).integers(0, 256, (50, 70, 3), np.uint8)
    wanted = np.zeros((2, 64, 64, 3), np.float32)
    assert np.shares_memory(sam_image(pixels, 64, wanted[1]), wanted)
    np.testing.assert_array_equal(wanted[1], sam_image(pixels, 64))
    assert not wanted[0].any()


SIZES = [(1, 1), (1, 300), (2, 3), (9, 9), (50, 70), (63, 65), (64, 64), (64, 200), (480, 640), (999, 37)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("size", [64, 96])
def test_grey_levels_are_within_one_of_the_exact_resize_rounded(height, width, size):
    random = np.random.default_rng(5)
    noise = random.integers(0, 256, (height, width, 3), np.uint8)
    for pixels in (noise, (noise > 127).astype(np.uint8) * 255):  # extremes side by side leave most to round
        levels, exact = sam_levels(pixels, size), np.rint(resize(pixels.astype(np.float32), size, size))
        assert levels.dtype == np.uint8 and levels.shape == (size, size, 3)
        assert np.abs(levels - exact).max() <= 1
        assert (levels == exact).mean() > 0.7
    np.testing.assert_array_equal(sam_levels(np.full((height, width, 3), 255, np.uint8), size), 255)
    out = np.empty((size, size, 3), np.uint8)
    assert sam_levels(noise, size, out) is out
    np.testing.assert_array_equal(out, sam_levels(noise, size))


@pytest.mark.slow
def test_a_loader_can_afford_it():
    pixels = np.random.default_rng(3).integers(0, 256, (768, 1024, 3), np.uint8)
    sam_image(pixels, 1024)
    times = []
    for _ in range(5):
        start = time.process_time()
        sam_image(pixels, 1024)
        times.append(time.process_time() - start)
    assert min(times) < 0.15
