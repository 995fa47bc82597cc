"""Texts, images and boxes of published training and evaluation rows are byte for byte those of the PyTorch code."""

import json

import pytest
from golden_files import GOLDEN
from PIL import Image

from virtue_jax.config import Compat
from virtue_jax.data.encoding.prompts import prompt_text
from virtue_jax.data.formats.mmeb import MmebTraining
from virtue_jax.data.formats.scar import ScarEvaluation, ScarTraining
from virtue_jax.data.unreadable import Unreadable

pytestmark = pytest.mark.parity
DATA, EXPECTED = GOLDEN / "benchmarks/data", GOLDEN / "benchmarks/expected"
RELEASED = Compat.released()


def expected(kind):
    files = sorted((EXPECTED / kind).glob("*.json"))
    assert files
    return [pytest.param(json.loads(file.read_text()), id=file.stem) for file in files]


def text_of(example, compat=RELEASED):
    size = None
    if example.images:
        with Image.open(example.images[0]) as image:
            size = image.size[::-1]
    return prompt_text(example, size, compat)


def assert_sides(pair, golden, root):
    for example, side in ((pair.query, golden["query"]), (pair.positive, golden["positive"])):
        assert text_of(example) == side["text"]
        assert list(example.images) == ([str(root / side["image"])] if side["image"] else [])


@pytest.mark.parametrize("golden", expected("mmeb-train"))
def test_mmeb_training_pairs(golden):
    source = MmebTraining(DATA / "MMEB-train" / golden["subset"], split=golden["split"])
    assert len(source) == golden["source_rows"]
    left_out = [row for row in range(len(source)) if isinstance(source[row][0], Unreadable)]
    assert left_out == golden["left_out_rows"]
    for pair in golden["pairs"]:
        assert_sides(source.pair(pair["row"]), pair, DATA / "MMEB-train")


@pytest.mark.parametrize("name", ["ADE20K", "RefCOCOg"])
def test_scar_training_pairs(name):
    golden = json.loads((EXPECTED / f"scar-train/{name}.json").read_text())
    source = ScarTraining(DATA / f"SCaR-train/SCAR_{name}.parquet")
    for pair in golden["pairs"]:
        read = source.pair(pair["row"])
        assert_sides(read, pair, DATA / "SCaR-train/images")
        assert read.query.prompt.box == pytest.approx(pair["bbox_to_model"], rel=1e-7)


@pytest.mark.parametrize("name", ["ADE20K", "RefCOCOg"])
def test_scar_questions(name):
    golden = json.loads((EXPECTED / f"scar-eval/{name}.json").read_text())
    file = DATA / f"SCaR-eval/SCaR_eval_{name}.parquet"
    released, paper = ScarEvaluation(file, gap=RELEASED.evaluation_gap), ScarEvaluation(file)
    assert len(released) == len(golden["queries"])
    for query in golden["queries"]:
        question = released[query["row"]]
        assert text_of(question.query) == query["text"]
        assert text_of(paper[query["row"]].query) == query["text"].replace("<|image_pad|> ", "<|image_pad|>")
        assert list(question.query.prompt.box) == query["bbox"] and list(question.types) == query["neg_types"]
        assert list(question.candidates) == query["candidates"]
        assert question.candidates[question.answer] == query["label"]


def test_markers_without_an_image_are_counted_and_dropped_in_paper():
    source = MmebTraining(DATA / "MMEB-train/WebQA")
    assert source.markers_alone() == len(source) == 4 and source.markers_alone(limit=3) == 3
    bare = text_of(source.pair(0).query, Compat.paper())
    assert bare == text_of(source.pair(0).query).removeprefix("<|image_pad|>\n") and bare.startswith("Find a Wikipedia")
    assert MmebTraining(DATA / "MMEB-train/ChartQA").markers_alone() == 0
