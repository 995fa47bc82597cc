import numpy as np
import pytest

from virtue_jax.data.encoding.positions import ImageSpan, rotary_positions

IMAGE_TOKEN = 1012


def spans(ids: np.ndarray, grids: np.ndarray) -> list[ImageSpan]:
    """Where each image's vision tokens start in ids, from the grids (t, h, w) in patches."""
    places, found = np.flatnonzero(ids == IMAGE_TOKEN), []
    for _, height, width in grids:
        rows, columns = int(height) // 2, int(width) // 2
        found.append(ImageSpan(int(places[0]), rows, columns))
        places = places[rows * columns :]
    assert not len(places)
    return found


def golden_files(golden, pattern: str) -> list:
    files = sorted((golden / "tiny" / "golden").glob(pattern))
    assert files, f"no {pattern} in the golden folder"
    return files


def test_mrope_gives_every_paper_golden(arrays, golden):
    tried = 0
    for path in golden_files(golden, "paper_*.npz"):
        case = arrays(path.name)
        if "position_ids" in case:
            ids, expected = case["input_ids"][0], case["position_ids"][:, 0]
            images = spans(ids, case.get("grid_thw", np.zeros((0, 3), int)))
            made = rotary_positions("mrope", len(ids), images, expected.shape[1] - len(ids))
            assert made.dtype == np.int32
            np.testing.assert_array_equal(made, expected, err_msg=path.name)
            tried += 1
    assert tried >= 8


def test_mrope_gives_the_training_goldens(arrays):
    case = arrays("paper_train.npz")
    for i in range(4):
        ids, expected = case[f"q_input_ids_{i}"][0], case[f"q_position_ids_{i}"][:, 0]
        made = rotary_positions("mrope", len(ids), spans(ids, case[f"grid_thw_{i}"]), 256)
        np.testing.assert_array_equal(made, expected)


def test_mrope_gives_the_reference_rope_index_where_images_are_marked(arrays, golden):
    path = golden / "tiny" / "golden" / "case_mrope.npz"
    case = arrays(path.name) if path.exists() else known_rope_index()
    for b, mask in enumerate(case["attention_mask"].astype(bool)):
        ids = case["input_ids"][b, mask]
        made = rotary_positions("mrope", len(ids), spans(ids, case["grid_thw"][b : b + 1]))
        np.testing.assert_array_equal(made, case["rope_index"][:, b, mask])


def known_rope_index() -> dict[str, np.ndarray]:
    """A 2x3 image after one word and before two, worked out by hand, in the layout of `case_mrope.npz`."""
    return {
        "input_ids": np.array([[1009, *[IMAGE_TOKEN] * 6, 1010, 5]]),
        "attention_mask": np.ones((1, 9), int),
        "grid_thw": np.array([[1, 4, 6]]),
        "rope_index": np.array([[0, 1, 1, 1, 1, 1, 1, 4, 5], [0, 1, 1, 1, 2, 2, 2, 4, 5], [0, 1, 2, 3, 1, 2, 3, 4, 5]])[
            :, None
        ],
    }


def test_prefix_gives_the_released_goldens_up_to_padding(arrays, golden):
    """The released code counts left padding in; nothing else stands between ours and its positions."""
    tried = 0
    for path in golden_files(golden, "case_*.npz"):
        case = arrays(path.name)
        if path.name in ("case_mrope.npz", "case_mixed.npz", "case_text.npz"):
            continue
        for b, mask in enumerate(case["attention_mask"].astype(bool)):
            made = rotary_positions("prefix", int(mask.sum()), (), 256)
            expected = case["position_ids"][:, b]
            np.testing.assert_array_equal(made[:, :256], expected[:, :256])
            np.testing.assert_array_equal(made[:, 256:] + (~mask).sum(), expected[:, 256:][:, mask])
            tried += 1
    assert tried >= 3


def test_sequential_gives_the_goldens_of_the_first_call(arrays, golden):
    tried = 0
    for path in golden_files(golden, "case_*.npz"):
        case = arrays(path.name)
        if path.name == "case_mixed.npz" or "position_ids_firstcall" not in case:
            continue
        for b, mask in enumerate(case["attention_mask"].astype(bool)):
            expected = case["position_ids_firstcall"][:, b]
            prefix = expected.shape[1] - len(mask)
            made = rotary_positions("sequential", int(mask.sum()), (), prefix)
            np.testing.assert_array_equal(made[:, :prefix], expected[:, :prefix])
            np.testing.assert_array_equal(made[:, prefix:], expected[:, prefix:][:, mask])
            tried += 1
    assert tried >= 4


def test_two_images_side_by_side_continue_after_the_larger_side():
    made = rotary_positions("mrope", 9, [ImageSpan(1, 1, 3), ImageSpan(4, 2, 2)])
    np.testing.assert_array_equal(made[0], [0, 1, 1, 1, 4, 4, 4, 4, 6])
    np.testing.assert_array_equal(made[1], [0, 1, 1, 1, 4, 4, 5, 5, 6])
    np.testing.assert_array_equal(made[2], [0, 1, 2, 3, 4, 5, 4, 5, 6])


@pytest.mark.parametrize("scheme", ["prefix", "sequential", "mrope"])
def test_text_alone_counts_from_zero(scheme):
    np.testing.assert_array_equal(rotary_positions(scheme, 5), np.tile(np.arange(5), (3, 1)))


def test_unknown_scheme_is_an_error():
    with pytest.raises(ValueError, match="'rope' is not one of prefix, sequential, mrope"):
        rotary_positions("rope", 3)
