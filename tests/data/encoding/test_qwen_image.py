import dataclasses

import numpy as np
import pytest

from virtue_jax.data.encoding.qwen_image import normalise, normalise_patches, qwen_image, smart_resize
from virtue_jax.data.example import InvalidExample


def frame(pixel_values: np.ndarray) -> np.ndarray:
    """The golden's patches [N, 1176] without the copy of the frame: [N, 588]."""
    return pixel_values.reshape(-1, 3, 2, 14 * 14)[:, :, 0].reshape(len(pixel_values), -1)


def test_smart_resize_has_every_golden_row(arrays):
    golden = arrays("preprocess.json")["smart_resize"]
    rows = golden["rows_h_w_to_h_w"]
    bounds = {name: golden[name] for name in ("min_pixels", "max_pixels", "factor")}
    assert len(rows) > 70
    assert [[h, w, *smart_resize(h, w, **bounds)] for h, w, _, _ in rows] == rows


def test_smart_resize_never_gives_an_empty_side():
    assert min(smart_resize(5600, 28, min_pixels=784, max_pixels=4 * 784)) == 28


def test_golden_images_give_the_golden_patches(arrays, tiny_config):
    images = arrays("images.npz")
    names = sorted({key.split("/")[0] for key in images})
    assert names == ["a", "b", "c", "d"]
    for name in names:
        made = qwen_image(images[f"{name}/raw"], tiny_config, name)
        expected = frame(images[f"{name}/pixel_values"])
        assert made.patches.dtype == np.uint8 and made.patch_yx.dtype == np.int32
        assert (1, *made.grid) == tuple(images[f"{name}/grid_thw"][0])
        np.testing.assert_allclose(normalise_patches(made.patches), expected, atol=1e-6, rtol=0)


def test_patch_coordinates_belong_to_the_patches(tiny_config, noise):
    made = qwen_image(noise, tiny_config, "row")
    rows, columns = made.grid
    assert made.pixels.shape == (rows * 14, columns * 14, 3)
    assert {tuple(yx) for yx in made.patch_yx} == {(y, x) for y in range(rows) for x in range(columns)}
    for patch, (y, x) in zip(made.patches, made.patch_yx, strict=True):
        cut = made.pixels[y * 14 : (y + 1) * 14, x * 14 : (x + 1) * 14]
        np.testing.assert_array_equal(patch.reshape(3, 14, 14), cut.transpose(2, 0, 1))


def test_patches_and_pixels_are_normalised_alike(tiny_config, noise):
    made = qwen_image(noise, tiny_config, "row")
    normal = normalise(made.pixels)
    assert normal.dtype == np.float32 and normal.shape == made.pixels.shape
    for patch, (y, x) in zip(normalise_patches(made.patches), made.patch_yx, strict=True):
        cut = normal[y * 14 : (y + 1) * 14, x * 14 : (x + 1) * 14]
        np.testing.assert_array_equal(patch.reshape(3, 14, 14), cut.transpose(2, 0, 1))


def test_four_consecutive_patches_are_one_merged_square(tiny_config, noise):
    quads = qwen_image(noise, tiny_config, "row").patch_yx.reshape(-1, 4, 2)
    np.testing.assert_array_equal(quads - quads[:, :1], np.broadcast_to([[0, 0], [0, 1], [1, 0], [1, 1]], quads.shape))
    assert (quads[:, 0] % 2 == 0).all()


@pytest.mark.parametrize(
    "height, width, grid", [(1, 1, (4, 4)), (27, 28, (4, 4)), (1, 150, (4, 4)), (28, 5600, (2, 400))]
)
def test_small_and_long_images_are_handled(height, width, grid, tiny_config):
    made = qwen_image(np.full((height, width, 3), 128, np.uint8), tiny_config, "row")
    assert made.grid == grid and made.patches.shape == (grid[0] * grid[1], 588)


@pytest.mark.parametrize("height, width", [(10, 20000), (20000, 10), (1, 201), (28, 5601)])
def test_a_too_long_image_is_an_error_with_size_and_remedy(height, width, tiny_config):
    with pytest.raises(InvalidExample, match=rf"row 9: image of {width}x{height} pixels .*200.*; crop it"):
        qwen_image(np.zeros((height, width, 3), np.uint8), tiny_config, "row 9")


def test_pixel_bounds_come_from_the_config(tiny_config, noise):
    small = dataclasses.replace(tiny_config, min_pixels=784, max_pixels=4 * 784)
    assert qwen_image(noise, small, "row").grid[0] * 14 * qwen_image(noise, small, "row").grid[1] * 14 <= 4 * 784
    large = dataclasses.replace(tiny_config, min_pixels=100 * 784)
    assert len(qwen_image(noise, large, "row").patches) >= 400
