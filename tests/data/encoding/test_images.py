import io

import numpy as np
import pytest
from PIL import Image

from virtue_jax.data.encoding.images import crop, load_image, load_mask
from virtue_jax.data.example import InvalidExample


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_path_and_bytes_give_the_same_rgb_array(noise, png, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(noise))
    for source in (str(path), path, png(noise)):
        loaded = load_image(source, "row 1")
        assert loaded.dtype == np.uint8
        np.testing.assert_array_equal(loaded, noise)


@pytest.mark.parametrize(
    "image, rgb",
    [
        (Image.new("L", (3, 2), 77), (77, 77, 77)),
        (Image.new("1", (3, 2), 1), (255, 255, 255)),
        (Image.new("RGBA", (3, 2), (10, 20, 30, 0)), (10, 20, 30)),
        (Image.new("LA", (3, 2), (40, 0)), (40, 40, 40)),
        (Image.new("RGB", (3, 2), (1, 2, 3)).convert("P", palette=Image.Palette.ADAPTIVE), (1, 2, 3)),
        (Image.fromarray(np.full((2, 3), 200, np.uint16)), (1, 1, 1)),
        (Image.fromarray(np.full((2, 3), 40000, np.uint16)), (156, 156, 156)),
    ],
    ids=["grey", "1-bit", "alpha-dropped", "grey-alpha", "palette", "16-bit", "16-bit-bright"],
)
def test_every_mode_becomes_rgb(image, rgb):
    loaded = load_image(saved(image), "row 1")
    assert loaded.shape == (2, 3, 3)
    np.testing.assert_array_equal(loaded, np.broadcast_to(rgb, (2, 3, 3)))


def test_cmyk_becomes_rgb_as_pillow_converts_it():
    data = saved(Image.new("CMYK", (16, 16), (10, 200, 30, 5)), "JPEG", quality=100)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(load_image(data, "row 1"), expected)


def test_exif_orientation_is_not_applied(noise):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees for display
    data = saved(Image.fromarray(noise), "JPEG", exif=exif)
    assert load_image(data, "row 1").shape == (60, 90, 3)


def bad_files(png: bytes) -> dict[str, bytes]:
    wrong_checksum = bytearray(png)
    wrong_checksum[60] ^= 0xFF
    return {
        "zero.png": b"",
        "text.png": b"this is no image at all, only words",
        "cut.png": png[: len(png) // 2],
        "cut_header.png": png[:20],
        "flipped.png": bytes(wrong_checksum),
    }


@pytest.mark.parametrize("name", ["zero.png", "text.png", "cut.png", "cut_header.png", "flipped.png"])
def test_a_bad_file_is_an_error_with_row_path_and_remedy(name, noise, png, tmp_path):
    path = tmp_path / name
    path.write_bytes(bad_files(png(noise))[name])
    with pytest.raises(InvalidExample) as caught:
        load_image(str(path), "train.jsonl row 7")
    message = str(caught.value)
    assert "train.jsonl row 7" in message and str(path) in message and "; " in message


def test_a_cut_jpeg_is_an_error(noise, tmp_path):
    path = tmp_path / "cut.jpg"
    data = saved(Image.fromarray(noise), "JPEG")
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InvalidExample, match="truncated"):
        load_image(path, "row 1")


def test_bad_bytes_are_an_error_naming_the_row():
    with pytest.raises(InvalidExample, match=r"row 3: image \(0 encoded bytes\) is empty"):
        load_image(b"", "row 3")
    with pytest.raises(InvalidExample, match=r"row 3: image \(4 encoded bytes\) is not an image"):
        load_image(b"1234", "row 3")


def test_missing_file_and_folder_are_errors(tmp_path):
    with pytest.raises(InvalidExample, match=r"row 2: image .*none.png' does not exist; check the path"):
        load_image(tmp_path / "none.png", "row 2")
    with pytest.raises(InvalidExample, match="is not a file"):
        load_image(tmp_path, "row 2")


def test_decompression_bomb_is_an_error(monkeypatch, png, noise):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InvalidExample, match=r"row 4: .* is too large .*make it smaller"):
        load_image(png(noise), "row 4")


@pytest.mark.parametrize("height, width", [(1, 1), (10, 20000)])
def test_extreme_sizes_load(height, width, png):
    assert load_image(png(np.zeros((height, width, 3), np.uint8)), "row 1").shape == (height, width, 3)


def test_mask_is_true_where_the_array_or_file_is_not_zero(tmp_path):
    inside = np.zeros((4, 6), bool)
    inside[1:3, 2:5] = True
    palette = Image.fromarray(inside.astype(np.uint8) * 3, "L").convert("P")
    transparent = np.full((4, 6, 4), 255, np.uint8)
    transparent[..., 3] = inside * 255
    opaque = np.repeat(inside[..., None], 3, axis=2).astype(np.uint8) * [0, 0, 9]
    files = {
        "grey": Image.fromarray(inside.astype(np.uint8)),
        "wide": Image.fromarray(inside.astype(np.uint16) * 500),
        "bit": Image.fromarray(inside),
        "palette": palette,
        "rgb": Image.fromarray(opaque.astype(np.uint8)),
        "alpha": Image.fromarray(transparent),
    }
    for name, image in files.items():
        image.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(load_mask(str(tmp_path / f"{name}.png"), (4, 6), "row"), inside, err_msg=name)
    for array in (inside, inside.astype(np.uint8) * 7, inside.astype(np.int64)):
        loaded = load_mask(array, (4, 6), "row")
        assert loaded.dtype == bool
        np.testing.assert_array_equal(loaded, inside)


def test_mask_of_another_size_names_both_sizes(tmp_path):
    with pytest.raises(InvalidExample, match=r"row 5: mask array is 6x4 .*its image is 9x4 .*own pixels"):
        load_mask(np.ones((4, 6), bool), (4, 9), "row 5")
    Image.new("L", (6, 4), 1).save(tmp_path / "m.png")
    with pytest.raises(InvalidExample, match=r"row 5: mask .*m.png' is 6x4"):
        load_mask(tmp_path / "m.png", (6, 4), "row 5")


def test_unusable_masks_are_errors(tmp_path):
    with pytest.raises(InvalidExample, match="row 1: mask array has no pixel inside"):
        load_mask(np.zeros((4, 6), bool), (4, 6), "row 1")
    with pytest.raises(InvalidExample, match=r"row 1: mask array is float32\[4, 6\]; expected bool"):
        load_mask(np.ones((4, 6), np.float32), (4, 6), "row 1")
    with pytest.raises(InvalidExample, match=r"row 1: mask .*none.png' does not exist"):
        load_mask(tmp_path / "none.png", (4, 6), "row 1")


def test_a_crop_holds_the_pixels_of_the_box(noise, png):
    cut = load_image(crop(png(noise), (10.5, 3, 30.2, 999), "row 1"), "row 1")
    np.testing.assert_array_equal(cut, noise[3:, 10:31])


@pytest.mark.parametrize("box", [(-9, -9, -3, -3), (90, 0, 95, 10), (5, 5, 5, 5)])
def test_a_crop_of_nothing_names_row_box_and_size(noise, png, box):
    with pytest.raises(InvalidExample, match=r"row 1: box \[.*\] holds no pixel .* 90x60 .*give a box"):
        crop(png(noise), box, "row 1")
