"""JSON lines: what issue 2 promises is read, and everything else is refused with file and line."""

import json

import pytest

from virtue_jax.data.example import InvalidExample
from virtue_jax.data.formats.jsonl import JsonlTraining, read_examples


def lines(tmp_path, *records):
    path = tmp_path / "data.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in records))
    return path


def only(tmp_path, record):
    (example,) = read_examples(lines(tmp_path, record))
    return example


def test_a_full_line(tmp_path):
    record = {"image": "a/b.png", "text": "Grüße 你好", "box": [1, 2, 3.5, 4], "points": [[5, 6, 0]], "mask": "m.png"}
    example = only(tmp_path, record)
    assert example.images == (str(tmp_path / "a/b.png"),)
    assert example.text == "Grüße 你好"
    prompt = example.prompt
    assert (prompt.box, prompt.points, prompt.mask) == ((1, 2, 3.5, 4), ((5, 6, 0),), str(tmp_path / "m.png"))
    assert prompt.frame == "image"
    assert example.origin == f"{tmp_path / 'data.jsonl'}:1"


def test_image_alone_text_alone_and_lists(tmp_path):
    first, second, third = read_examples(
        lines(tmp_path, {"image": "a.png"}, {"text": "word"}, {"image": ["a.png", "/b.png"], "text": "two"})
    )
    assert (first.text, first.prompt) == ("", None)
    assert second.images == ()
    assert third.images == (str(tmp_path / "a.png"), "/b.png")


@pytest.mark.parametrize(
    ("value", "points"),
    [
        ([512, 256], ((512, 256, 1),)),
        ([512, 256, 0], ((512, 256, 0),)),
        ([[1, 2], [3, 4, 0]], ((1, 2, 1), (3, 4, 0))),
    ],
)
def test_sam_points(tmp_path, value, points):
    prompt = only(tmp_path, {"image": "a.png", "sam_point": value}).prompt
    assert (prompt.points, prompt.frame) == (points, "sam")


def test_sam_box_with_sam_point_and_mask(tmp_path):
    prompt = only(tmp_path, {"image": "a.png", "sam_box": [0, 0, 9, 9], "sam_point": [4, 4], "mask": "m.png"}).prompt
    assert (prompt.box, prompt.frame) == ((0, 0, 9, 9), "sam") and prompt.mask


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"image": "a.png", "bbox": [1, 2, 3, 4]}, r"unknown keys \['bbox'\]"),
        ({"image": "a.png", "box": [1, 2, 3, 4], "sam_box": [1, 2, 3, 4]}, "both box and sam_box"),
        ({"image": "a.png", "points": [[1, 2, 1]], "sam_box": [1, 2, 3, 4]}, "both points and sam_box"),
        ({"image": "a.png", "box": [1, 2, 3]}, "box is .*expected a list of 4 numbers"),
        ({"image": "a.png", "box": [1, 2, 3, True]}, "expected a list of 4 numbers"),
        ({"image": "a.png", "box": [5, 2, 3, 4]}, "inverted"),
        ({"image": "a.png", "points": [[1, 2]]}, r"points\[0\] is .*expected a list of 3 numbers"),
        ({"image": "a.png", "points": []}, "at least one"),
        ({"image": "a.png", "points": [[1, 2, 7]]}, "label 1"),
        ({"image": "a.png", "mask": 3}, "mask is 3; expected a path"),
        ({"image": 3}, "image is 3; expected a path"),
        ({"image": []}, "empty list"),
        ({"image": "a.png", "text": 5}, "text is 5; expected a string"),
        ({"text": ""}, "neither text nor image"),
        ({}, "neither text nor image"),
        ({"text": "x", "box": [1, 2, 3, 4]}, "without an image"),
        ('{"text": "a", "text": "b"}', "more than once"),
        ('{"image": "a.png", "box": [1, 2, NaN, 4]}', "NaN"),
        ('{"text": "a"', "not one JSON object"),
        ("[1]", "expected an object"),
        ("", "blank line"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = lines(tmp_path, {"text": "good"}, line)
    with pytest.raises(InvalidExample, match=message) as error:
        list(read_examples(path))
    assert str(error.value).startswith(f"{path}:2")


def test_bad_files_are_named(tmp_path):
    with pytest.raises(InvalidExample, match="no such file"):
        list(read_examples(tmp_path / "absent.jsonl"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InvalidExample, match="empty"):
        list(read_examples(tmp_path / "empty.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes('{"text": "Grüße"}\n'.encode("latin-1"))
    with pytest.raises(InvalidExample, match=r"latin\.jsonl:1: not UTF-8"):
        list(read_examples(tmp_path / "latin.jsonl"))


def test_training_lines_are_read_by_row(tmp_path):
    records = [
        {"query": {"image": "ü.png", "text": f"Frage {i} 你", "box": [1, 2, 3, 4]}, "positive": {"text": f"yes {i}"}}
        for i in range(20)
    ]
    records[7]["negatives"] = [{"text": "no"}, {"image": "b.png"}]
    records[8]["positive"] = [{"text": "yes"}, {"text": "indeed", "image": "b.png"}]
    source = JsonlTraining(lines(tmp_path, *records))
    assert len(source) == 20
    pair = source.pair(7)
    assert (pair.query.text, pair.positive.text) == ("Frage 7 你", "yes 7")
    assert pair.query.images == (str(tmp_path / "ü.png"),)
    assert [n.text for n in pair.negatives] == ["no", ""]
    assert pair.negatives[1].origin.endswith("data.jsonl:8 negatives[1]")
    assert [source.pair(i).positive.text for i in (19, 0)] == ["yes 19", "yes 0"]
    assert [p.text for p in source.pair(8).positives] == ["yes", "indeed"] and source.pair(8).positive.text == "yes"
    assert source.pair(8).positives[1].origin.endswith("data.jsonl:9 positive[1]")
    moved = JsonlTraining(source.path, image_root=tmp_path / "images")
    assert moved.pair(8).positives[1].images == (str(tmp_path / "images" / "b.png"),)
    with pytest.raises(IndexError):
        source[20]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"query": {"text": "q"}}, "no 'positive'"),
        ({"query": {"text": "q"}, "positive": {"text": "p"}, "negative": []}, "unknown keys"),
        ({"query": {"text": "q"}, "positive": {"text": "p"}, "negatives": {"text": "n"}}, "expected a list of objects"),
        ({"query": {"text": "q"}, "positive": "p"}, 'positive: "p"; expected an object'),
        ({"query": {"text": "q"}, "positive": []}, "positive is an empty list"),
        ({"query": {"text": "q"}, "positive": {"text": "p"}, "negatives": [{}]}, r"negatives\[0\]: neither"),
    ],
)
def test_bad_training_lines_are_found_when_the_file_is_opened(tmp_path, line, message):
    path = lines(tmp_path, {"query": {"text": "q"}, "positive": {"text": "p"}}, line)
    with pytest.raises(InvalidExample, match=message) as error:
        JsonlTraining(path)
    assert str(error.value).startswith(f"{path}:2")
