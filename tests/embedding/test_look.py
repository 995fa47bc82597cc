"""An image looked at once and pointed at is what embedding the same example from scratch gives, without compiling."""

import numpy as np
import pytest
from PIL import Image

from virtue_jax.data.example import InvalidExample

TOLERANCE = 1e-6
pytestmark = pytest.mark.slow

BOX, POINT = {"box": [5, 6, 70, 50]}, {"points": [[70, 30, 1]]}
PROMPTS = {
    "released": [{}, BOX, POINT, {"sam_box": [5, 6, 700, 500]}, {"sam_point": [300, 400]}],
    "paper": [
        {},
        BOX,
        POINT,
        {"points": [[70, 30, 1], [5, 5, 0], [9, 9, 1]]},
        {"mask": "mask.png"},
        BOX | POINT | {"mask": "mask.png"},
        {"sam_box": [5, 6, 700, 500]},
    ],
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """photo.png of 100x60 pixels and mask.png of its size, in the working directory."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)).save(tmp_path / "photo.png")
    inside = np.zeros((60, 100), np.uint8)
    inside[20:40, 30:80] = 255
    Image.fromarray(inside).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("compat", PROMPTS)
@pytest.mark.parametrize("rows", [1, 2])
def test_every_kind_of_prompt_is_as_from_scratch(small_embedder, files, compat, rows):
    embedder = small_embedder(compat, image_rows=rows)
    prompts = [prompt | {"text": text} for prompt in PROMPTS[compat] for text in ("what is this?", "")]
    scratch = embedder.embed([{"image": "photo.png"} | prompt for prompt in prompts])
    look = embedder.look("photo.png")
    assert look.size == (60, 100)
    np.testing.assert_allclose(look.point_many(prompts), scratch, atol=TOLERANCE)
    for prompt, vector in list(zip(prompts, scratch, strict=True))[::3]:
        got = look.point(**prompt)
        assert (got.shape, got.dtype) == (vector.shape, np.float32)
        np.testing.assert_allclose(got, vector, atol=TOLERANCE)
    assert np.abs(scratch[0] - scratch[2]).max() > 1e-4


def test_pointing_compiles_nothing_whatever_the_number_of_prompts(small_embedder, files, compiled):
    embedder = small_embedder()
    embedder.embed([{"image": "photo.png"}])
    compiled.clear()
    look = embedder.look("photo.png")
    for count in (1, 2, 7, 30):
        prompts = [{"points": [[x, 7, 1], [x, 9, 0]][: 1 + x % 2], "text": "this " * (x % 5)} for x in range(count)]
        assert look.point_many(prompts).shape == (count, 64)
    assert look.point_many([]).shape == (0, 64)
    assert not compiled


def test_the_image_is_read_and_the_towers_run_once(small_embedder, files, monkeypatch):
    embedder = small_embedder()
    look = embedder.look("photo.png")
    expected = look.point(**BOX)
    (files / "photo.png").unlink()
    monkeypatch.setattr(embedder._programs, "_look", None)
    np.testing.assert_array_equal(look.point(**BOX, text=None, points=None), expected)


def test_several_images_and_no_segmentation(small_embedder, files):
    embedder = small_embedder()
    record = {"image": ["photo.png", "mask.png"], "text": "both"}
    vector = embedder.look(record["image"]).point(text="both", **BOX)
    np.testing.assert_allclose(vector, embedder.embed([record | BOX])[0], atol=TOLERANCE)
    plain = embedder.look("photo.png", segmentation=False).point(text="plain")
    expected = embedder.embed([{"image": "photo.png", "text": "plain"}], segmentation=False)[0]
    np.testing.assert_allclose(plain, expected, atol=TOLERANCE)


def test_more_points_and_longer_texts_than_a_row_has_room_for(small_embedder, files):
    embedder = small_embedder()
    prompt = {"points": [[x, y, 1] for x in range(5, 50, 10) for y in range(5, 50, 10)], "text": "word " * 600}
    vector = embedder.look("photo.png").point(**prompt)
    np.testing.assert_allclose(vector, embedder.embed([{"image": "photo.png"} | prompt])[0], atol=TOLERANCE)


def test_wrong_prompts_are_refused_by_number(small_embedder, files):
    look = small_embedder().look("photo.png")
    with pytest.raises(InvalidExample, match=r"prompt 1: box .* is outside the image of 100x60"):
        look.point_many([BOX, {"box": [0, 0, 500, 500]}])
    with pytest.raises(InvalidExample, match=r"prompt 0: unknown keys \['circle'\]"):
        look.point(circle=3)
    with pytest.raises(InvalidExample, match="give a list of prompts"):
        look.point_many(BOX)
    with pytest.raises(InvalidExample, match=r"image 'absent\.png' does not exist"):
        small_embedder().look("absent.png")
