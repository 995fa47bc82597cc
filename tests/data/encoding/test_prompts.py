import dataclasses

import numpy as np
import pytest

from virtue_jax.batch import NOT_A_POINT
from virtue_jax.config import Compat
from virtue_jax.data.encoding.prompts import encode_prompt, mask_logits, point_grid, prompt_text
from virtue_jax.data.example import Example, InvalidExample, VisualPrompt

PAPER, RELEASED = Compat.paper(), Compat.released()
MARK = PAPER.image_markup


def text_of(text: str, prompt: VisualPrompt | None = None, compat: Compat = RELEASED, images: int = 1) -> str:
    return prompt_text(Example(text, (b"x",) * images, prompt, origin="row 1"), (100, 200), compat)


def encoded(prompt: VisualPrompt | None, compat: Compat = PAPER, size=(100, 200), sam_size: int = 1024):
    return encode_prompt(prompt, size, sam_size=sam_size, points_per_side=3, compat=compat, origin="row 1")


def test_template_is_markup_text_and_coordinates():
    box = VisualPrompt(box=(0.0, 41.0, 181.5, 93))
    assert text_of("Find it.", box) == "<|image_pad|>\nFind it.\nReferring object bbox: [0.0, 41.0, 181.5, 93]"
    assert text_of("Find it.", box, PAPER) == f"{MARK}\nFind it.\nReferring object bbox: [0, 41, 181.5, 93]"
    point = VisualPrompt(points=((30.7, 57.0, 1),))
    assert text_of("What?", point) == "<|image_pad|>\nWhat?\nReferring object point: (30, 57)"
    assert text_of("What?", images=2, compat=PAPER) == f"{MARK}{MARK}\nWhat?"


def test_a_marker_is_replaced_where_it_stands():
    text = "Which picture answers this, given <|image_1|>? Say."
    assert text_of(text) == "Which picture answers this, given <|image_pad|>? Say."
    box = VisualPrompt(box=(1, 2, 3, 4))
    assert text_of(text, box, PAPER) == text.replace("<|image_1|>", MARK) + "\nReferring object bbox: [1, 2, 3, 4]"


def test_a_marker_without_an_image_is_dropped_or_a_word():
    for text, bare in (("<|image_1|>\nWhat?", "What?"), ("<|image_1|> What?", "What?"), ("a <|image_1|>?", "a ?")):
        assert text_of(text, compat=PAPER, images=0) == bare
        assert text_of(text, images=0) == text.replace("<|image_1|>", "<|image_pad|>")


@pytest.mark.parametrize(("text", "images"), [("<|image_1|><|image_1|>", 1), ("<|image_1|>", 2)])
def test_a_marker_stands_for_one_image(text, images):
    with pytest.raises(InvalidExample, match=rf"row 1: .* in the text for {images} images; the marker stands once"):
        text_of(text, images=images)


def test_scar_training_prompt_is_the_reference_one():
    text = "Find the caption that best describes the segmented object."
    expected = f"<|image_pad|>\n{text}\nReferring object bbox: [0, 41, 181, 95]"
    assert text_of(text, VisualPrompt(box=(0, 41, 181, 95))) == expected


def test_mixed_prompts_have_a_line_for_each_kind():
    mixed = VisualPrompt(box=(1, 2, 3, 4), points=((5, 6, 1), (7, 8, 0), (9, 10, 1)), mask="unread.png")
    assert text_of("t", mixed, PAPER).split("\n")[2:] == [
        "Referring object bbox: [1, 2, 3, 4]",
        "Referring object points: (5, 6), (9, 10)",
        "Referring background point: (7, 8)",
    ]
    assert text_of("t", VisualPrompt(mask="unread.png"), PAPER) == f"{MARK}\nt"


def test_sam_frame_coordinates_are_written_in_whole_image_pixels():
    box = VisualPrompt(box=(256, 512, 1024, 1023.9), frame="sam")
    assert text_of("t", box).endswith("\nReferring object bbox: [50, 50, 200, 99]")
    assert text_of("t", VisualPrompt(points=((511, 300, 1),), frame="sam")).endswith("object point: (99, 29)")


def test_empty_text_leaves_the_markup_alone():
    assert text_of("") == "<|image_pad|>"
    assert text_of("", VisualPrompt(box=(1, 2, 3, 4))) == "<|image_pad|>\nReferring object bbox: [1, 2, 3, 4]"


def test_coordinates_are_left_out_where_the_compat_says_so():
    silent = dataclasses.replace(PAPER, coordinates_in_text=False)
    assert text_of("t", VisualPrompt(box=(1, 2, 3, 4)), silent) == f"{MARK}\nt"


def test_a_text_with_placeholder_and_a_text_alone_are_verbatim():
    verbatim = "Look: <|image_pad|> \nwhat"
    assert text_of(verbatim, VisualPrompt(box=(1, 2, 3, 4))) == verbatim
    assert prompt_text(Example("just words"), None, PAPER) == "just words"


@pytest.mark.parametrize(
    "text, images", [("<|image_pad|><|image_pad|>", 1), ("<|image_pad|>", 2), ("<|image_pad|>", 0)]
)
def test_placeholders_must_match_images(text, images):
    count = text.count("pad")
    with pytest.raises(InvalidExample, match=rf"row 1: {count} <\|image_pad\|> in the text for {images} images"):
        text_of(text, images=images)


def test_golden_prompts(arrays, golden):
    tried = 0
    for case in arrays("paper_cases.json")["cases"].values():
        if not (golden / "tiny" / "golden" / case["file"]).exists() or not case["images"]:
            continue
        stored = arrays(case["file"])
        labels = case.get("point_labels", ())
        points = tuple((x, y, label) for (x, y), label in zip(case.get("points", ()), labels, strict=True))
        mask = stored["mask"] != 0 if "mask" in stored else None
        given = VisualPrompt(case.get("box"), points, mask) if points or "box" in case or mask is not None else None
        made = encoded(given, size=tuple(case["image_sizes_hw"][0]))
        if "prompt_coords" in stored:
            np.testing.assert_allclose(made.points[:-1], stored["prompt_coords"][0], atol=1e-4, rtol=0)
            np.testing.assert_array_equal(made.labels, [*stored["prompt_labels"][0], NOT_A_POINT])
        else:
            assert made.points.shape == (0, 2) and made.labels.shape == (0,)
        assert (made.mask is None) == (mask is None)
        if mask is not None:
            np.testing.assert_array_equal(made.mask, np.where(stored["mask_256"] != 0, np.float32(10), np.float32(-10)))
        tried += 1
    assert tried >= 7


def test_point_grids_are_the_golden_ones(arrays):
    for n, expected in arrays("preprocess.json")["point_grid"].items():
        np.testing.assert_allclose(point_grid(int(n), 1024), expected, rtol=1e-12)


def test_no_prompt_is_the_grid_as_one_prompt():
    made = encoded(None, sam_size=256)
    assert made.labels.tolist() == [1] * 9 + [NOT_A_POINT] and made.mask is None
    np.testing.assert_allclose(made.points[:-1], point_grid(3, 256), rtol=1e-6)


def test_order_is_box_points_padding_and_dtypes_are_static():
    made = encoded(VisualPrompt(box=(20, 10, 100, 50), points=((40, 30, 0), (200, 100, 1))))
    assert made.labels.tolist() == [2, 3, 0, 1, NOT_A_POINT]
    assert made.points.dtype == np.float32 and made.labels.dtype == np.int32
    np.testing.assert_allclose(made.points[:4], [[102.4, 102.4], [512, 512], [204.8, 307.2], [1024, 1024]], rtol=1e-6)


def test_released_boxes_reach_sam_in_image_pixels_and_points_are_scaled():
    for sam_size in (1024, 512):
        box = encoded(VisualPrompt(box=(20, 10, 100, 50)), RELEASED, sam_size=sam_size)
        np.testing.assert_allclose(box.points[:2] * 1024 / sam_size, [[20, 10], [100, 50]])
        point = encoded(VisualPrompt(points=((20, 10, 1),)), RELEASED, sam_size=sam_size)
        np.testing.assert_allclose(point.points[0] * 1024 / sam_size, [102.4, 102.4], rtol=1e-6)


def test_released_wide_golden_box(arrays):
    case, stored = arrays("cases.json")["cases"]["wide"], arrays("case_wide.npz")
    made = encoded(VisualPrompt(box=tuple(case["bboxes"][0])), RELEASED, size=(60, 1200))
    np.testing.assert_allclose(made.points[:2], stored["prompt_coords"][0], atol=1e-4)


@pytest.mark.parametrize("compat", [PAPER, RELEASED])
def test_sam_frame_is_the_1024_frame_whatever_the_input_size(compat):
    made = encoded(VisualPrompt(box=(104.3, 201.7, 598, 955.4), frame="sam"), compat, sam_size=512)
    np.testing.assert_allclose(made.points[:2] * 2, [[104.3, 201.7], [598, 955.4]], rtol=1e-6)


@pytest.mark.parametrize(
    "prompt, named",
    [
        (VisualPrompt(box=(10, 10, 202, 50)), r"box \[10, 10, 202, 50\] is outside the image of 200x100"),
        (VisualPrompt(box=(-2, 10, 20, 50)), r"box \[-2, 10, 20, 50\]"),
        (VisualPrompt(box=(200, 10, 200.5, 50)), r"box \[200, 10, 200.5, 50\]"),
        (VisualPrompt(box=(10, 20, 30, 2000)), r"y from 0 to 100; correct it"),
        (VisualPrompt(points=((10, 101, 1),)), r"point \(10, 101\) is outside the image of 200x100"),
        (VisualPrompt(points=((1, 1, 1), (-0.5, 1, 0))), r"point \(-0.5, 1\)"),
        (
            VisualPrompt(box=(0, 0, 1100, 50), frame="sam"),
            r"box \[0, 0, 1100, 50\] is outside the SAM frame of 1024x1024",
        ),
        (VisualPrompt(points=((1025, 1, 1),), frame="sam"), r"point \(1025, 1\) is outside the SAM frame"),
    ],
)
def test_a_prompt_outside_names_size_value_and_remedy(prompt, named):
    with pytest.raises(InvalidExample, match=named) as caught:
        encoded(prompt)
    assert str(caught.value).startswith("row 1: ")


def test_a_box_over_the_edge_by_rounding_is_clipped():
    made = encoded(VisualPrompt(box=(-0.5, 0, 201, 100.9)))
    np.testing.assert_allclose(made.points[:2], [[0, 0], [1024, 1024]])
    kept = encoded(VisualPrompt(box=(-0.5, 0, 201, 100.9)), RELEASED)
    np.testing.assert_allclose(kept.points[:2], [[-0.5, 0], [201, 100.9]], rtol=1e-6)
    in_sam = encoded(VisualPrompt(box=(0, 0, 1029, 1024), frame="sam"))  # 5.12 of SAM's units are one image pixel here
    np.testing.assert_allclose(in_sam.points[1], [1024, 1024])


@pytest.mark.parametrize(
    "prompt, named",
    [
        (VisualPrompt(mask=np.ones((100, 200), bool)), "a mask"),
        (VisualPrompt(points=((1, 1, 1), (2, 2, 1))), "2 points"),
        (VisualPrompt(points=((1, 1, 0),)), "a negative point"),
        (VisualPrompt(box=(1, 1, 5, 5), points=((1, 1, 1),)), "a box together with points"),
    ],
)
def test_released_refuses_what_it_cannot_do_and_names_the_remedy(prompt, named):
    encoded(prompt)
    with pytest.raises(InvalidExample, match=rf"row 1: {named}: .*compat 'paper'"):
        encoded(prompt, RELEASED)


def test_mask_alone_has_no_sparse_token_and_mixtures_have_both():
    mask = np.zeros((100, 200), bool)
    mask[:50] = True
    alone = encoded(VisualPrompt(mask=mask))
    assert alone.points.shape == (0, 2) and alone.mask.shape == (256, 256) and alone.mask.dtype == np.float32
    np.testing.assert_array_equal(alone.mask[:128], 10)
    np.testing.assert_array_equal(alone.mask[128:], -10)
    assert encoded(VisualPrompt(box=(1, 1, 5, 5), mask=mask)).labels.tolist() == [2, 3, NOT_A_POINT]
    assert encoded(VisualPrompt(mask=mask), sam_size=256).mask.shape == (64, 64)


def test_mask_resize_takes_pixel_centres():
    inside = np.random.default_rng(0).random((7, 1000)) < 0.5
    made = mask_logits(inside, 64) > 0
    for i in range(64):
        for j in range(64):
            assert made[i, j] == inside[(2 * i + 1) * 7 // 128, (2 * j + 1) * 1000 // 128]


def test_mask_of_the_wrong_size_names_row_and_both_sizes():
    with pytest.raises(InvalidExample, match=r"row 1: mask array is 100x200 .* image is 200x100"):
        encoded(VisualPrompt(mask=np.ones((200, 100), bool)))
