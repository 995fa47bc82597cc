import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from virtue_jax.batch import NOT_A_POINT
from virtue_jax.config import Compat
from virtue_jax.data.encoding.encode import ExampleEncoder, image_key
from virtue_jax.data.encoding.qwen_image import normalise_patches
from virtue_jax.data.encoding.sam_image import resize, sam_image
from virtue_jax.data.example import Example, InvalidExample, VisualPrompt

IMAGE_TOKEN = 1012


@pytest.fixture(scope="module")
def encoder(tiny_config, tokenizer) -> ExampleEncoder:
    return ExampleEncoder(tiny_config, tokenizer)


@pytest.fixture(scope="module")
def released(tiny_config, tokenizer) -> ExampleEncoder:
    return ExampleEncoder(tiny_config, tokenizer, Compat.released())


def golden_example(case: dict, stored: dict, png) -> Example:
    labels = case.get("point_labels", ())
    points = tuple((x, y, label) for (x, y), label in zip(case.get("points", ()), labels, strict=True))
    mask = stored["mask"] != 0 if "mask" in stored else None
    prompted = points or "box" in case or mask is not None
    prompt = VisualPrompt(case.get("box"), points, mask) if prompted else None
    images = tuple(png(stored[f"raw_{i}"]) for i in range(len(case["images"])))
    return Example(case["text"], images, prompt, origin=case["file"])


def sam_input(encoded) -> np.ndarray:
    made = np.empty((1024, 1024, 3), np.float32)
    encoded.images[0].write_sam(made)
    return made


def assert_words_are(encoded, ids: np.ndarray, count: int) -> None:
    """Word ids stand where the golden has words, vision tokens in order where it has `<|image_pad|>`."""
    assert (
        encoded.tokens.dtype
        == encoded.positions.dtype
        == encoded.vision.dtype
        == encoded.segmentation.dtype
        == np.int32
    )
    is_image = ids == IMAGE_TOKEN
    np.testing.assert_array_equal(encoded.tokens, np.concatenate([np.zeros(count, int), np.where(is_image, 0, ids)]))
    vision = np.where(is_image, np.cumsum(is_image) - 1, -1)
    np.testing.assert_array_equal(encoded.vision, np.concatenate([np.full(count, -1), vision]))
    expected = np.concatenate([np.arange(count), np.full(len(ids), -1)])
    np.testing.assert_array_equal(encoded.segmentation, expected)


def test_paper_goldens_come_out_whole(arrays, golden, encoder, png):
    tried = 0
    for case in arrays("paper_cases.json")["cases"].values():
        if not (golden / "tiny" / "golden" / case["file"]).exists():
            continue
        stored = arrays(case["file"])
        made = encoder.encode(golden_example(case, stored, png))
        count = 256 if case["images"] else 0
        assert len(made) == case["sequence_length"] and len(made.images) == len(case["images"])
        assert_words_are(made, stored["input_ids"][0], count)
        np.testing.assert_array_equal(made.positions, stored["position_ids"][:, 0])
        assert (made.prompt is not None) == bool(count)
        if count:
            grids = [(1, *image.grid) for image in made.images]
            np.testing.assert_array_equal(grids, stored["grid_thw"])
            patches = normalise_patches(np.concatenate([image.patches for image in made.images]))
            name, step = ("pixel_values", 1) if "pixel_values" in stored else ("pixel_values_s8", 8)
            expected = stored[name].reshape(-1, 3, 2, 196)[:, :, 0].reshape(-1, 588)
            np.testing.assert_allclose(patches[::step], expected, atol=1e-6, rtol=0)
            np.testing.assert_allclose(
                sam_input(made)[::16, ::16].transpose(2, 0, 1), stored["sam_input_s16"], atol=9e-6, rtol=0
            )
            assert all(image.sam is None for image in made.images[1:])
        tried += 1
    assert tried >= 9


def test_released_goldens_come_out_but_for_padding(arrays, golden, released, png):
    images, tried = arrays("images.npz"), 0
    for name, case in arrays("cases.json")["cases"].items():
        path = golden / "tiny" / "golden" / f"case_{name}.npz"
        if not path.exists() or name in ("mixed", "mrope"):
            continue
        stored = arrays(path.name)
        for b, text in enumerate(case["texts"]):
            prompt = None
            if "bboxes" in case:
                prompt = VisualPrompt(box=tuple(case["bboxes"][b % len(case["bboxes"])]), frame="sam")
            elif "point" in case:
                prompt = VisualPrompt(points=((*case["point"], 1),), frame="sam")
            image = case["images"][b]
            made = released.encode(Example(text, (png(images[f"{image}/raw"]),) if image else (), prompt))
            ids = stored["input_ids"][b][stored["attention_mask"][b] == 1]
            count = 256 if image else 0
            assert_words_are(made, ids, count)
            np.testing.assert_array_equal(made.positions[:, count:], np.tile(count + np.arange(len(ids)), (3, 1)))
            if image:
                place = b % len(stored["prompt_coords"])
                np.testing.assert_allclose(made.prompt.points[:-1], stored["prompt_coords"][place], atol=1e-4, rtol=0)
                assert made.prompt.labels.tolist() == [*stored["prompt_labels"][place], NOT_A_POINT]
                np.testing.assert_allclose(
                    sam_input(made)[::16, ::16].transpose(2, 0, 1),
                    images[f"{image}/sam_input_s16"],
                    atol=1.8e-5,
                    rtol=0,
                )
            tried += 1
    assert tried >= 6


def test_without_segmentation_it_is_the_plain_qwen_sequence(arrays, released, png):
    case, images = arrays("cases.json")["cases"]["wide"], arrays("images.npz")
    example = Example(case["texts"][0], (png(images["c/raw"]),), VisualPrompt(box=(12, 3, 700, 55)))
    made = released.encode(example, segmentation=False)
    assert_words_are(made, arrays("case_wide.npz")["input_ids"][0], 0)
    np.testing.assert_array_equal(made.positions, np.tile(np.arange(len(made)), (3, 1)))
    assert made.prompt is None and made.images[0].sam is None


def test_text_alone_has_no_segmentation_tokens(encoder):
    made = encoder.encode(Example("A cat"))
    assert made.tokens.tolist() == [32, 271, 267] and not made.images and made.prompt is None
    assert (made.segmentation == -1).all() and (made.vision == -1).all()


def test_template_and_its_rotary_positions_follow_the_compat(encoder, released, noise, png):
    example = Example("A cat", (png(noise),))
    marked, bare = encoder.encode(example), released.encode(example)
    assert marked.tokens[256] == 1009 and marked.tokens[marked.vision >= 0].sum() == 0
    assert bare.vision[256] == 0 and bare.positions[0, 256] == 256
    assert len(marked) == len(bare) + 2
    assert marked.positions[:, -1].max() < len(marked) - 256 - 1


def test_empty_text_with_an_image_is_the_markup_alone(encoder, noise, png):
    made = encoder.encode(Example("", (png(noise),)))
    assert made.tokens[256] == 1009 and made.tokens[-1] == 1010
    assert len(made) == 256 + 2 + made.images[0].vision_tokens


def test_an_image_given_twice_is_encoded_once_and_read_twice(encoder, noise, png):
    made = encoder.encode(Example("both?", (png(noise), png(noise))))
    count = made.images[0].vision_tokens
    assert len(made.images) == 1 and made.images[0].sam is not None
    assert made.vision[made.vision >= 0].tolist() == [*range(count), *range(count)]


def test_keys_tell_files_and_bytes_apart(tmp_path, monkeypatch, noise, png):
    monkeypatch.chdir(tmp_path)
    assert image_key("a.png") == image_key(tmp_path / "a.png") != image_key("b.png")
    assert image_key(png(noise)) == image_key(png(noise)) != image_key(png(noise[:5]))


def test_sam_input_is_the_raw_image_or_qwens_as_the_compat_says(encoder, released, noise, png):
    raw, qwen = (sam_input(e.encode(Example("x", (png(noise),)))) for e in (encoder, released))
    np.testing.assert_array_equal(raw, sam_image(noise, 1024))
    assert np.abs(raw - qwen).max() > 1


def test_grey_levels_go_out_as_they_are(encoder, released, noise, png):
    for maker in (encoder, released):
        image = maker.encode(Example("x", (png(noise),))).images[0]
        grey, patches = np.empty((64, 64, 3), np.uint8), np.empty(image.patches.shape, np.uint8)
        image.write_sam(grey)
        image.write_patches(patches)
        np.testing.assert_array_equal(grey, np.rint(resize(image.sam.astype(np.float32), 64, 64)))
        np.testing.assert_array_equal(patches, image.patches)


def test_an_encoder_for_a_smaller_sam_input(tiny_config, tokenizer, noise, png):
    small = dataclasses.replace(tiny_config, sam2=dataclasses.replace(tiny_config.sam2, image_size=256))
    made = ExampleEncoder(small, tokenizer).encode(
        Example("x", (png(noise),), VisualPrompt(mask=np.ones((60, 90), bool)))
    )
    assert made.prompt.mask.shape == (64, 64)
    assert (made.segmentation >= 0).sum() == 16


def test_an_encoder_survives_pickling(encoder, noise, png):
    example = Example("A cat", (png(noise),), VisualPrompt(box=(1, 2, 30, 40)))
    first, again = encoder.encode(example), pickle.loads(pickle.dumps(encoder)).encode(example)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    np.testing.assert_array_equal(first.images[0].patches, again.images[0].patches)


def test_a_one_pixel_image_can_be_embedded(encoder, png):
    made = encoder.encode(Example("x", (png(np.full((1, 1, 3), 9, np.uint8)),), VisualPrompt(points=((0.5, 0.5, 1),))))
    np.testing.assert_allclose(made.prompt.points[0], [512, 512])
    assert made.images[0].size == (1, 1) and made.images[0].vision_tokens == 4


def test_every_error_names_the_row(encoder, released, noise, png, tmp_path):
    Image.fromarray(np.zeros((10, 20000), np.uint8)).save(tmp_path / "long.png")
    (tmp_path / "zero.png").touch()
    image = (png(noise),)
    mask = np.ones((5, 5), bool)
    bad = [
        (encoder, Example("x", (tmp_path / "none.png",), origin="row 3"), r"none.png' does not exist"),
        (encoder, Example("x", (tmp_path / "zero.png",), origin="row 3"), r"zero.png' is empty \(0 bytes\)"),
        (encoder, Example("x", (tmp_path / "long.png",), origin="row 3"), "20000x10"),
        (encoder, Example("x", image, VisualPrompt(box=(1, 1, 95, 5)), origin="row 3"), "outside the image of 90x60"),
        (
            encoder,
            Example("x", image, VisualPrompt(points=((1, 99, 1),)), origin="row 3"),
            "outside the image of 90x60",
        ),
        (encoder, Example("x", image, VisualPrompt(mask=mask), origin="row 3"), "5x5 .* 90x60"),
        (encoder, Example("<|image_pad|>", origin="row 3"), "for 0 images"),
        (
            released,
            Example("x", image, VisualPrompt(points=((1, 9, 0),)), origin="row 3"),
            "negative point.*compat 'paper'",
        ),
    ]
    for maker, example, message in bad:
        with pytest.raises(InvalidExample, match=f"row 3: .*{message}"):
            maker.encode(example)


def test_a_prompt_is_checked_without_segmentation_too(encoder, noise, png):
    with pytest.raises(InvalidExample, match="outside"):
        encoder.encode(Example("x", (png(noise),), VisualPrompt(box=(1, 1, 95, 5))), segmentation=False)


def test_a_tokenizer_of_another_model_is_refused(tiny_config, tokenizer):
    other = dataclasses.replace(tiny_config, text=dataclasses.replace(tiny_config.text, image_token_id=7))
    with pytest.raises(ValueError, match="not the model's"):
        ExampleEncoder(other, tokenizer)


def test_a_marker_without_an_image_is_a_word_in_released(tiny_config, tokenizer):
    released = ExampleEncoder(tiny_config, tokenizer, Compat.released())
    encoded = released.encode(Example("<|image_1|>\nWhich one?"))
    assert encoded.tokens.tolist() == tokenizer.ids("<|image_pad|>\nWhich one?") and (encoded.vision == -1).all()
    assert encoded.tokens[0] == tiny_config.text.image_token_id and not encoded.images
    paper = ExampleEncoder(tiny_config, tokenizer).encode(Example("<|image_1|>\nWhich one?"))
    assert paper.tokens.tolist() == tokenizer.ids("Which one?")
