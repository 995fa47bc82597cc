"""MMEB-train parquet: the published schema comes out as pairs, and bad rows are named."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from virtue_jax.data.example import InvalidExample
from virtue_jax.data.formats.mmeb import SCHEMA, SUBSETS, MmebTraining, subset_sources, train_row
from virtue_jax.data.formats.parquet import write_rows


@pytest.fixture
def published(tmp_path):
    """A folder as the published one: images beside the subset folders, whose rows are made of `row(...)`."""
    (tmp_path / "images/WebQA/Train").mkdir(parents=True)
    for name in "ab":
        Image.new("RGB", (30, 20)).save(tmp_path / f"images/WebQA/Train/{name}.png")
    (tmp_path / "WebQA").mkdir()
    return tmp_path


def row(**changes):
    return {
        "qry": "<|image_1|>\nFind a caption for the news in the given photo.\n",
        "qry_image_path": "images/WebQA/Train/a.png",
        "pos_text": "A caption.",
        "pos_image_path": "",
    } | changes


def write(folder, *rows, name="original-00000-of-00001.parquet"):
    columns = {column: [row.get(column) for row in rows] for column in rows[-1]}
    pq.write_table(pa.table(columns), folder / "WebQA" / name)
    return folder / "WebQA"


def test_sides_with_and_without_images(published):
    both = {"pos_text": "<|image_1|>\nRepresent the given image.", "pos_image_path": "images/WebQA/Train/b.png"}
    alone = {"qry": "Find a picture.", "qry_image_path": ""}
    folder = write(published, row(), row(**alone, **both), row(**{**both, "pos_text": ""}))
    source = MmebTraining(folder)
    assert len(source) == 3
    first, second, third = (source.pair(i) for i in range(3))
    assert first.query.text == "<|image_1|>\nFind a caption for the news in the given photo.\n", "kept byte for byte"
    assert first.query.images == (str(published / "images/WebQA/Train/a.png"),) and first.query.prompt is None
    assert (first.positive.text, first.positive.images, first.negatives) == ("A caption.", (), ())
    assert (second.query.text, second.query.images) == ("Find a picture.", ())
    assert second.positive.text == "<|image_1|>\nRepresent the given image."
    assert second.positive.images == (str(published / "images/WebQA/Train/b.png"),)
    assert (third.positive.text, len(third.positive.images)) == ("", 1)
    assert first.query.origin == source.origin(0) == "WebQA/original-00000-of-00001.parquet:row 0"
    assert pickle.loads(pickle.dumps(source)).pair(1) == second


def test_negatives_come_along(published):
    folder = write(published, row(neg_text=["wrong", ""], neg_image_path=["", "images/WebQA/Train/b.png"]))
    negatives = MmebTraining(folder).pair(0).negatives
    assert [(n.text, len(n.images)) for n in negatives] == [("wrong", 0), ("", 1)]


def test_what_is_written_is_read(published):
    image = "images/WebQA/Train/a.png"
    with write_rows(published / "WebQA/original-0.parquet", SCHEMA) as write:
        write([train_row(("<|image_1|>\nWhat? ", image), ("this", "")), train_row(("q", ""), ("", image), ("no", ""))])
    first, second = (MmebTraining(published / "WebQA").pair(row) for row in (0, 1))
    assert (first.query.text, first.query.images) == ("<|image_1|>\nWhat? ", (str(published / image),))
    assert (second.positive.text, second.positive.images) == ("", (str(published / image),))
    assert [negative.text for negative in second.negatives] == ["no"] and not first.negatives


def test_only_the_split_asked_for_is_read(published):
    write(published, row(), row(), name="diverse_instruction-00000-of-00001.parquet")
    folder = write(published, row())
    assert len(MmebTraining(folder)) == 1
    assert len(MmebTraining(folder, split="diverse_instruction")) == 2
    with pytest.raises(InvalidExample, match=r"split 'test'.*it has diverse_instruction.*, original"):
        MmebTraining(folder, split="test")
    with pytest.raises(InvalidExample, match=r"it has WebQA, images; give the folder of one subset"):
        MmebTraining(published)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qry": "", "qry_image_path": None}, "neither qry nor qry_image_path"),
        ({"pos_text": None}, "pos_text is None"),
        ({"pos_text": ""}, "neither pos_text nor pos_image_path"),
        ({"qry": "<|image_1|> and <|image_2|>"}, "one .* at most"),
        ({"qry_image_path": "c.png"}, r"image 'c.png' is not in the image root"),
        ({"neg_text": ["a"], "neg_image_path": ["", ""]}, "1 neg_text but 2 neg_image_path"),
    ],
)
def test_bad_rows_are_named(published, change, message):
    folder = write(published, row(), row(**change))
    with pytest.raises(InvalidExample, match=message) as error:
        MmebTraining(folder).pair(1)
    assert str(error.value).startswith("WebQA/original-00000-of-00001.parquet:row 1: ")


def test_bad_files_are_named(published):
    file = write(published, {"qry": "a"}) / "original-00000-of-00001.parquet"
    with pytest.raises(InvalidExample, match="no column qry_image_path, pos_text, pos_image_path; it has qry"):
        MmebTraining(file)
    with pytest.raises(InvalidExample, match="no such file"):
        MmebTraining(published / "absent.parquet")
    with pytest.raises(InvalidExample, match="no parquet file given"):
        MmebTraining([])


def test_twenty_subsets_of_weight_one_and_at_most_100_000_rows():
    sources = subset_sources("data/MMEB-train")
    assert len(sources) == len(SUBSETS) == 20 and sum(SUBSETS.values()) == 1_068_800
    assert {(s["kind"], s["weight"], s["limit"], s["image_root"]) for s in sources.values()} == {
        ("mmeb", 1.0, 100_000, "data/MMEB-train")
    }
    assert sources["ImageNet_1K"]["path"] == "data/MMEB-train/ImageNet_1K"
