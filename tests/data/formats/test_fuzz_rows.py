"""Damaged and senseless rows of every reader: nothing but `InvalidExample` comes out, with the row's name in it."""

import functools
import json
import random as pseudo_random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from virtue_jax.data.example import Example, InvalidExample, TrainingPair
from virtue_jax.data.formats.jsonl import JsonlTraining, parse_example, readable_examples
from virtue_jax.data.formats.mmeb import MmebTraining
from virtue_jax.data.formats.parquet import ParquetRows
from virtue_jax.data.formats.scar import ScarEvaluation, ScarTraining
from virtue_jax.data.formats.table_rows import TableRows
from virtue_jax.data.masks import decode_segmentation, rle_encode
from virtue_jax.data.scenes import write_scenes
from virtue_jax.data.unreadable import Unreadable

DEEP = json.loads("[" * 400 + "]" * 400)
NUMBERS = (0, 1, -1, 3.5, 1e308, 1e999, -1e999, float("nan"), 10**30, 10**400, -(2**63), True, False)
TEXTS = (
    "",
    "a",
    "\ud83d",
    "a \udc00 b",
    "\x00",
    "<|image_pad|>",
    "<|image_1|>",
    "x" * 9999,
    "a.png",
    "\u202e",
    "../..",
)
OTHERS = (None, [], {}, [[]], [None], [[1, 2], [3]], {"a": {"b": []}}, {"size": [1], "counts": "o" * 9999}, DEEP)
VALUES = (*NUMBERS, *TEXTS, *OTHERS)


def senseless(random: pseudo_random.Random, depth: int = 0):
    """A value that JSON or a program may hold, of any type."""
    if depth < 3 and random.random() < 0.4:
        entries = [senseless(random, depth + 1) for _ in range(random.randint(0, 5))]
        return entries if random.random() < 0.7 else {random.choice(TEXTS)[:20]: entry for entry in entries}
    return random.choice(VALUES)


def spoilt(value, random: pseudo_random.Random):
    """The value with something in it, or itself, replaced."""
    if isinstance(value, dict) and value and random.random() < 0.8:
        key = random.choice(sorted(value))
        return value | {key: spoilt(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.7:
        place = random.randrange(len(value))
        return [*value[:place], spoilt(value[place], random), *value[place + 1 :]]
    return senseless(random)


@pytest.fixture
def folder(tmp_path, noise):
    Image.fromarray(noise).save(tmp_path / "a.png")
    Image.fromarray(noise[..., 0]).save(tmp_path / "mask.png")
    return tmp_path


EXAMPLES = (
    {"image": "a.png", "text": "the dog", "box": [1, 2, 30, 40], "points": [[5, 6, 1], [7, 8, 0]], "mask": "mask.png"},
    {"image": ["a.png", "a.png"], "text": "two", "sam_box": [1, 2, 300, 400], "sam_point": [5, 6]},
    {"text": "text alone"},
)


def encoded_or_refused(make, encoder, origin: str) -> bool:
    """Whether an example could be made and encoded; else an `InvalidExample` of one line names its row."""
    try:
        example = make()
        assert isinstance(example, Example)
        encoder.encode(example)
    except InvalidExample as error:
        assert origin in str(error) and "\n" not in str(error), str(error)[:300]
        str(error).encode()
        return False
    return True


@pytest.mark.parametrize("count", [150, pytest.param(5000, marks=pytest.mark.slow)])
def test_senseless_records_are_invalid_examples(folder, small_sam_encoder, count):
    random = pseudo_random.Random(0)
    records = [spoilt(random.choice(EXAMPLES), random) for _ in range(count)]
    examples = [functools.partial(parse_example, record, folder, "in.jsonl:3") for record in records]
    good = sum(encoded_or_refused(example, small_sam_encoder, "in.jsonl:3") for example in examples)
    assert 0 < good < count / 2


def damaged(line: bytes, random: pseudo_random.Random) -> bytes:
    place, length = random.randrange(len(line)), random.randint(0, 6)
    return line[:place] + random.randbytes(random.randint(0, 6)).replace(b"\n", b"?") + line[place + length :]


@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_lines_are_named_and_leave_the_others(folder, count):
    random = pseudo_random.Random(1)
    lines = [json.dumps(random.choice(EXAMPLES)).encode() for _ in range(count)]
    bad = [damaged(line, random) if number % 3 else line for number, line in enumerate(lines)]
    path = folder / "in.jsonl"
    path.write_bytes(b"\n".join(line or b"?" for line in bad))
    read = list(readable_examples(path))
    assert len(read) == count
    for number, example in enumerate(read):
        if isinstance(example, Unreadable):
            assert number % 3 and example.error.startswith(f"{path}:{number + 1}")
            assert "correct this row" not in example.error  # that is said of what no reader foresaw


def test_spoilt_training_lines_are_their_rows_fault(folder):
    random = pseudo_random.Random(2)
    whole = {"query": EXAMPLES[0], "positive": [{"text": "p"}], "negatives": [{"text": "n"}]}
    lines = [json.dumps(spoilt(whole, random) if number % 3 == 0 else whole) for number in range(150)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    source = JsonlTraining(folder / "train.jsonl")
    for row in range(len(source)):
        (pair,) = source[row]
        assert isinstance(pair, TrainingPair) or row % 3 == 0
        if isinstance(pair, Unreadable):
            assert f"train.jsonl:{row + 1}" in pair.error and "correct this row" not in pair.error


SEGMENTATIONS = (
    {"size": [6, 8], "counts": [5, 10, 33]},
    {"size": [6, 8], "counts": "5:Q1"},
    [[1, 1, 5, 1, 5, 4], [2, 2, 6, 2, 6, 5]],
    [1, 1, 5, 1, 5, 4],
)


@pytest.mark.parametrize("count", [1000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_malformed_segmentations_are_invalid_examples(count):
    random = pseudo_random.Random(3)
    good = 0
    for _ in range(count):
        value = spoilt(random.choice(SEGMENTATIONS), random)
        try:
            mask = decode_segmentation(value, 6, 8)
            assert mask.shape == (6, 8) and mask.dtype == bool
            good += 1
        except InvalidExample as error:
            assert "\n" not in str(error)
    assert good < count / 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"size": [2, 2], "counts": [1.5, 2.5]}, "whole numbers"),
        ({"size": [2, 2], "counts": [2**62, 2**62, 2**62, 2**62 + 4]}, "4 pixels in all"),
        ({"size": [2, 2], "counts": [5, -1]}, "none negative"),
        ({"size": [2, 2], "counts": "o" * 1_000_000}, "more than 45 bits"),
        ({"size": [2, 2], "counts": "é"}, "hold byte 195"),
        ({"size": None, "counts": [4]}, "expected 'size' and 'counts'"),
        ({"size": 4, "counts": [4]}, "COCO's run lengths"),
        ([[0, 0, 1, 0, 1, 1e300]], "at least three finite points in pixels"),
        ([[0, 0, "x", 0, 1, 1]], "COCO's run lengths"),
        ([{"a": 1}], "COCO's run lengths"),
    ],
)
def test_what_is_wrong_with_a_segmentation_is_said(value, message):
    with pytest.raises(InvalidExample, match=message):
        decode_segmentation(value, 2, 2)


def test_run_lengths_still_decode_whatever_holds_them():
    mask = np.random.default_rng(0).random((6, 8)) > 0.5
    runs = rle_encode(mask)["counts"]
    for counts in (runs, tuple(runs), np.array(runs), list(map(float, runs))):
        np.testing.assert_array_equal(decode_segmentation({"size": (6, 8), "counts": counts}, 6, 8), mask)


# Parquet: every column of a published schema in every type.

BAD_TEXT = pa.array([b"\xff\xfe", b"ok"]).cast(pa.binary()).view(pa.string())
COLUMNS = {
    "not UTF-8": BAD_TEXT,
    "null": pa.nulls(2),
    "int": pa.array([1, 2**63 - 1]),
    "float": pa.array([float("nan"), float("inf")]),
    "bool": pa.array([True, False]),
    "binary": pa.array([b"\xff", b""]),
    "empty": pa.array(["", None]),
    "texts": pa.array([["a", None], []]),
    "numbers": pa.array([[1.0, 2.0, float("nan"), 1e300], None]),
    "nested": pa.array([[[1], []], [[]]]),
    "struct": pa.array([{"size": [1], "counts": "x"}, None]),
    "date": pa.array([2**62, -(2**62)], pa.timestamp("us")),
    "duration": pa.array([2**62, 1], pa.duration("us")),
    "decimal": pa.array([1, 2]).cast(pa.decimal128(38, 10)),
    "dictionary": pa.array(["a", "b"]).dictionary_encode(),
    "NUL": pa.array(["\x00", "a\x00b"]),
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, train=2, eval=2, seed=2, width=(96, 96), height=(96, 96), objects=(2, 3))
    return folder


def only(folder, name: str, **columns):
    """Two rows of the first file of that name with some columns replaced, in a file of their own."""
    table = pq.read_table(next(folder.glob(name))).slice(0, 2)
    for column, values in columns.items():
        table = table.set_column(table.schema.get_field_index(column), column, values)
    path = folder / "replaced.parquet"
    pq.write_table(table, path)
    return path


SOURCES = {
    "train": ("*train*.parquet", lambda path, kind: ScarTraining(path, prompts={kind: 1.0})),
    "eval": ("*eval*.parquet", lambda path, kind: ScarEvaluation(path, prompt=kind, masks=kind == "mask")),
}


KINDS = [("train", "mask"), ("eval", "point")]
SLOW_KINDS = [("train", "box"), ("train", "point"), ("eval", "box"), ("eval", "mask")]


@pytest.mark.parametrize(
    ("schema", "kind"), [*KINDS, *(pytest.param(*kind, marks=pytest.mark.slow) for kind in SLOW_KINDS)]
)
def test_every_type_in_every_column_of_scar(scenes, schema, kind):
    name, opened = SOURCES[schema]
    for column in pq.read_schema(next(scenes.glob(name))).names:
        for values in COLUMNS.values():
            check_rows(lambda c=column, v=values: opened(only(scenes, name, **{c: v}), kind))


def test_every_type_in_every_column_of_mmeb(folder):
    columns = {
        "qry": ["<|image_1|>\nWhat?"] * 2,
        "qry_image_path": ["a.png"] * 2,
        "pos_text": ["This."] * 2,
        "pos_image_path": [""] * 2,
        "neg_text": [["no"]] * 2,
        "neg_image_path": [[""]] * 2,
    }
    (folder / "set").mkdir()
    pq.write_table(pa.table(columns), folder / "set" / "original-good.parquet")
    for column in columns:
        for values in COLUMNS.values():
            path = only(folder / "set", "original-good.parquet", **{column: values})
            check_rows(lambda path=path: MmebTraining(path, image_root=folder))


def check_rows(opened) -> None:
    """Opens a source and reads its rows: each gives its pair or question, or an `InvalidExample` that names it."""
    try:
        source = opened()
        rows = source.rows_by_image()
    except InvalidExample as error:
        assert "\n" not in str(error)
        return
    assert sorted(row for group in rows.values() for row in group) == list(range(len(source)))
    read = source.pair if isinstance(source, ScarTraining | MmebTraining) else source.__getitem__
    for row in range(len(source)):
        try:
            assert isinstance(read(row).query, Example)
        except InvalidExample as error:
            assert source.origin(row) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_parquet_files_are_invalid_examples(scenes, count):
    random = pseudo_random.Random(4)
    data = next(scenes.glob("*train*.parquet")).read_bytes()
    path = scenes / "damaged.parquet"
    for _ in range(count):
        path.write_bytes(b"".join((damaged(data[:4000], random), data[4000:-4000], damaged(data[-4000:], random))))
        try:
            rows = ParquetRows(path, ["qry", "bbox"])
            for row in range(min(len(rows), 5)):
                rows[row]
        except InvalidExample as error:
            assert "damaged.parquet" in str(error)
    path.unlink()


def test_rows_of_a_column_that_is_not_utf8_stand_alone(folder):
    path = folder / "bad.parquet"
    pq.write_table(pa.table({"qry": ["q", "q"], "qry_image_path": BAD_TEXT}), path)
    source = TableRows([path], ["qry", "qry_image_path"], [], folder)
    assert [*source.rows_by_image().values()] == [[0], [1]]
    with pytest.raises(InvalidExample, match=r"bad.parquet:row 0: qry_image_path is not UTF-8 .*write the column"):
        source.tables[0][0]
    assert source.tables[0][1]["qry_image_path"] == "ok"
