"""Prepared sets: what comes back encodes as the original does; what is not whole is refused."""

import dataclasses
import json
import pickle
import re
import resource
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from virtue_jax.data.example import ImageBytes, InvalidExample
from virtue_jax.data.formats.jsonl import JsonlTraining
from virtue_jax.data.formats.mmeb import MmebTraining
from virtue_jax.data.formats.record_reader import PreparedTraining
from virtue_jax.data.formats.record_writer import prepare
from virtue_jax.data.formats.scar import ScarTraining
from virtue_jax.data.row_groups.measure import LengthMeasure
from virtue_jax.data.scenes import write_scenes
from virtue_jax.data.sources.shared_images import SharedImages
from virtue_jax.data.unreadable import QUARANTINE


@pytest.fixture(scope="module")
def folder(tmp_path_factory, noise):
    """Scenes, an MMEB subset and JSON lines, with images a.png (90x60), b.jpg, c.png and a mask of a.png."""
    folder = tmp_path_factory.mktemp("originals")
    write_scenes(folder / "scenes", train=4, eval=0, seed=2, width=(96, 120), height=(96, 96), objects=(2, 4))
    Image.fromarray(noise).save(folder / "a.png")
    Image.fromarray(noise[:50, :70]).save(folder / "b.jpg")
    Image.fromarray(noise[..., 0]).save(folder / "c.png")
    mask = np.zeros((60, 90), np.uint8)
    mask[5:20, 30:70] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    _write_mmeb(folder)
    _write_lines(folder)
    return folder


def _write_mmeb(folder):
    rows = [
        {"qry": "<|image_1|>\nWhat?\n", "qry_image_path": "a.png", "pos_text": "This.", "pos_image_path": ""},
        {"qry": "Find it.", "qry_image_path": "", "pos_text": "<|image_1|>\nIt.", "pos_image_path": "b.jpg"},
    ]
    negatives = [([""], ["c.png"]), (["no", "never"], ["", "b.jpg"])]
    rows = [row | {"neg_text": t, "neg_image_path": i} for row, (t, i) in zip(rows, negatives, strict=True)]
    (folder / "WebQA").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "WebQA/original.parquet")


def _write_lines(folder):
    prompts = [
        {"box": [1, 2.125, 30.333333333333336, 40]},
        {"points": [[5, 6, 0], [7.1, 8, 1]], "mask": "mask.png"},
        {"sam_box": [0, 0, 900.7, 9], "sam_point": [4, 4]},
        {},
    ]
    lines = [
        {"query": {"image": "a.png", "text": "Grüße 你好"} | prompt, "positive": {"text": "p"}} for prompt in prompts
    ]
    several = {"image": ["b.jpg", "a.png", "b.jpg"]}
    lines.append(
        {"query": several, "positive": [{"text": "x"}, {"image": "c.png"}], "negatives": [several | {"text": "n"}]}
    )
    (folder / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def originals(folder):
    kinds = {"box": 1.0, "point": 1.0, "mask": 1.0}
    scenes = ScarTraining(folder / "scenes", prompts=kinds, seed=3)
    return {
        "scenes": scenes,
        "groups": SharedImages(scenes, 3),
        "mmeb": MmebTraining(folder / "WebQA"),
        "jsonl": JsonlTraining(folder / "own.jsonl"),
    }


@pytest.fixture(scope="module")
def prepared(originals, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    for name, source in originals.items():
        (folder / name).mkdir()
        prepare(source, folder / name, elements_per_file=3)
    return folder


def examples_of(source):
    for row in range(len(source)):
        for pair in source[row]:
            yield from (pair.query, *pair.positives, *pair.negatives)


def assert_same_arrays(one, other):
    """Of two encoded examples: everything but what the images are known by."""
    assert one.origin == other.origin and len(one.images) == len(other.images)
    pairs = [(one, other), *zip(one.images, other.images, strict=True)]
    if one.prompt is not None or other.prompt is not None:
        pairs.append((one.prompt, other.prompt))
    for a, b in pairs:
        for field in dataclasses.fields(a):
            if field.name not in ("key", "images", "prompt"):
                np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


@pytest.mark.parametrize("name", ["scenes", "groups", "mmeb", "jsonl"])
def test_examples_encode_to_the_same_arrays(name, originals, prepared, small_sam_encoder):
    original, read = originals[name], PreparedTraining(prepared / name)
    assert len(read) == len(original) and read.pairs == original.pairs
    for row in range(len(original)):
        sides = [[(len(p.positives), len(p.negatives)) for p in s[row]] for s in (original, read)]
        assert sides[0] == sides[1] and type(read[row]) is type(original[row])
        assert read.origin(row) == original.origin(row)
    for ours, theirs in zip(examples_of(read), examples_of(original), strict=True):
        assert_same_arrays(small_sam_encoder.encode(ours), small_sam_encoder.encode(theirs))


def test_every_kind_of_prompt_was_compared(originals):
    prompts = [e.prompt for s in originals.values() for e in examples_of(s) if e.prompt is not None]
    assert {p.frame for p in prompts} == {"image", "sam"}
    assert any(p.box for p in prompts) and any(p.points for p in prompts)
    assert {type(p.mask) for p in prompts} == {type(None), str, np.ndarray}


def test_image_files_are_kept_byte_by_byte_and_once_in_an_element(folder, prepared):
    query, negative = (lambda pair: (pair.query, pair.negatives[0]))(PreparedTraining(prepared / "jsonl")[4][0])
    jpeg, png = (folder / "b.jpg").read_bytes(), (folder / "a.png").read_bytes()
    assert query.images == negative.images == (jpeg, png, jpeg)
    assert query.images[0] is query.images[2] is negative.images[0]
    assert [image.size for image in query.images[:2]] == [(50, 70), (60, 90)]
    group = max(PreparedTraining(prepared / "groups"), key=len)
    assert len(group) == 3 and len({id(pair.query.images[0]) for pair in group}) == 1


def test_lengths_need_no_image_header(prepared, originals, small_sam_encoder, monkeypatch):
    def measured(source):
        measure = LengthMeasure(small_sam_encoder.config, small_sam_encoder.tokenizer)
        return [[n._replace(images=[i[1:] for i in n.images]) for n in measure.element(source[r])] for r in range(5)]

    expected, read = measured(originals["jsonl"]), PreparedTraining(prepared / "jsonl")
    elements = [read[row] for row in range(5)]
    monkeypatch.setattr(Image, "open", None)
    assert measured(elements) == expected


def test_sets_travel_to_worker_processes(prepared):
    read = PreparedTraining(prepared / "mmeb")
    assert read[1][0].query.text == "Find it."
    again = pickle.loads(pickle.dumps(read))
    assert again[1] == read[1]
    image = pickle.loads(pickle.dumps(read[0][0].query.images[0]))
    assert isinstance(image, ImageBytes) and image.size == (60, 90)
    with pytest.raises(IndexError, match="row 2 of 2"):
        again[2]


def test_unreadable_rows_are_left_out_listed_and_limited(folder, tmp_path):
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:4000])
    queries = [
        {"image": "a.png"},
        {"image": "cut.png"},
        {"image": "b.jpg", "mask": "mask.png"},
        {"image": "absent.png"},
    ]
    lines = [json.dumps({"query": query, "positive": {"text": "p"}}) for query in queries]
    path = folder / "bad.jsonl"
    path.write_text("\n".join([*lines, json.dumps({"query": {"text": "\ud800"}, "positive": {"text": "p"}})]) + "\n")
    made = prepare(JsonlTraining(path), tmp_path)
    assert (made.elements, len(made.bad), len(PreparedTraining(tmp_path))) == (1, 4, 1)
    listed = [json.loads(line) for line in (tmp_path / QUARANTINE).read_text().splitlines()]
    assert [(bad["origin"], bad["error"]) for bad in listed] == made.bad and [bad["element"] for bad in listed] == [
        1,
        2,
        3,
        4,
    ]
    assert listed[0]["origin"] == f"{path}:2"
    whys = (
        "cut.png' is damaged or truncated",
        "mask.png' is 90x60",
        "absent.png' does not exist",
        "half of a surrogate pair",
    )
    for bad, why in zip(listed, whys, strict=True):
        assert why in bad["error"] and bad["origin"] in bad["error"]
    path.write_text("\n".join([lines[0], *[lines[1]] * 10]) + "\n")
    (tmp_path / "other").mkdir()
    with pytest.raises(InvalidExample, match=r"10 of the first 11 pairs .*bad_rows 0.8 allows; .*cut.png"):
        prepare(JsonlTraining(path), tmp_path / "other", bad_rows=0.8)


def test_a_bad_pair_leaves_the_others_of_its_image(folder, originals, tmp_path):
    class SpoiltGroups(SharedImages):
        """The second pair of each group has a positive that cannot be read."""

        def __getitem__(self, group):
            pairs = super().__getitem__(group)
            target = dataclasses.replace(pairs[0].positive, images=(str(folder / "absent.png"),))
            return tuple(dataclasses.replace(p, positives=(target,)) if i == 1 else p for i, p in enumerate(pairs))

    groups = SpoiltGroups(originals["scenes"], 3)
    made = prepare(groups, tmp_path, bad_rows=0.9)
    read = PreparedTraining(tmp_path)
    assert made.pairs == read.pairs == groups.pairs - len(made.bad)
    assert len(made.bad) == sum(len(group) > 1 for group in groups.groups)
    for row, group in enumerate(groups.groups):
        assert [p.query.text for p in read[row]] == [groups[row][i].query.text for i in range(len(group)) if i != 1]


def test_a_file_that_cannot_be_written_is_an_error(originals, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large; writing .*array_record-00000"):
            prepare(originals["scenes"], tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def copy(prepared, tmp_path):
    """A prepared set of two files that may be spoilt."""
    for path in (prepared / "jsonl").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_what_is_not_a_whole_set_is_refused(prepared, copy):
    with pytest.raises(InvalidExample, match="holds the prepared sets groups, jsonl, mmeb, scenes: give one of these"):
        PreparedTraining(prepared)
    with pytest.raises(InvalidExample, match=r"no dataset_info.json; write it again with `virtue prepare`"):
        PreparedTraining(copy / "absent")
    _, second = sorted(copy.glob("*.array_record-*"))
    whole = second.read_bytes()
    second.write_bytes(whole[:-1])
    with pytest.raises(
        InvalidExample, match=rf"1 of 2 files .* {second.name}: {len(whole) - 1} bytes, expected {len(whole)}"
    ):
        PreparedTraining(copy)
    second.unlink()
    with pytest.raises(InvalidExample, match="missing, expected"):
        PreparedTraining(copy)
    second.write_bytes(whole)
    info = copy / "dataset_info.json"
    info.write_text(info.read_text().replace('"version": "1.1.0"', '"version": "0.9.0"'))
    with pytest.raises(InvalidExample, match=r"virtue_pairs 0.9.0, expected virtue_pairs 1.1.0: prepared by another"):
        PreparedTraining(copy)
    (copy / "dataset_info.json").write_text("{")
    with pytest.raises(InvalidExample, match=r"dataset_info.json: cannot be read"):
        PreparedTraining(copy)


def test_a_damaged_record_is_named(copy):
    path = sorted(copy.glob("*.array_record-*"))[1]
    spoilt = bytearray(path.read_bytes())
    spoilt[300:600] = bytes(300)
    path.write_bytes(spoilt)
    read = PreparedTraining(copy)
    assert read[0][0].positive.text == "p"
    (damaged,) = read[3]
    assert re.search(r"element 3: damaged record .* `virtue prepare`", damaged.error)
    assert read.origin(3) == f"{copy}: element 3"


def test_tensorflow_is_not_imported(prepared):
    code = (
        "import sys; from virtue_jax.data.formats.record_reader import PreparedTraining; "
        f"PreparedTraining({str(prepared / 'mmeb')!r})[0]; sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_whatever_a_row_provokes_leaves_that_pair_out_and_nothing_of_it_is_kept(folder, tmp_path):
    class Odd(JsonlTraining):
        def __getitem__(self, row):
            if row == 1:
                raise RuntimeError("bad page")
            (pair,) = super().__getitem__(row)
            if row == 2:  # its prompt cannot be written, after its image and mask could
                prompt = dataclasses.replace(pair.query.prompt)
                object.__setattr__(prompt, "points", ((np.float32(1), 2, 1),))
                pair = dataclasses.replace(pair, query=dataclasses.replace(pair.query, prompt=prompt))
            return () if row == 3 else (pair,)

    query = {"image": "a.png", "box": [1, 2, 30, 40], "mask": "mask.png"}
    path = folder / "odd.jsonl"
    path.write_text("".join(json.dumps({"query": query, "positive": {"text": f"{i}"}}) + "\n" for i in range(5)))
    source = Odd(path)
    made = prepare(source, tmp_path, bad_rows=0.9)
    read = PreparedTraining(tmp_path)
    assert [pair.positive.text for row in range(len(read)) for pair in read[row]] == ["0", "4"]
    assert [bad.origin for bad in made.bad] == [f"{path}:{line}" for line in (2, 3, 4)]
    for bad, why in zip(made.bad, ("RuntimeError: bad page", "TypeError", "gives nothing"), strict=True):
        assert why in bad.error and bad.origin in bad.error
