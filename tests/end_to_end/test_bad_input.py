"""What a person reads when an input is wrong: one line with file, row and remedy, no traceback; nothing is written."""

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_run
from PIL import Image

from virtue_jax.cli.main import main
from virtue_jax.data.scenes import EVAL_FILE, TRAIN_FILE
from virtue_jax.embedding.embedder import Embedder


@pytest.fixture(scope="module")
def loaded(tiny_virtue) -> Embedder:
    return Embedder.load(tiny_virtue)


@pytest.fixture
def one_embedder(loaded, monkeypatch):
    """Loading takes seconds; what it refuses is tried below."""
    monkeypatch.setattr(Embedder, "load", lambda *_, **__: loaded)


@pytest.fixture
def pictures(tmp_path):
    """Files beside the input: a good image of 90x60, and bad ones."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "words.png").write_text("no image")
    Image.new("RGB", (20_000, 10)).save(tmp_path / "long.png")
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "dot.png")
    Image.new("1", (60, 90), 1).save(tmp_path / "mask.png")
    Image.new("1", (90, 60), 0).save(tmp_path / "nothing.png")
    return tmp_path


GOOD = {"text": "a red square"}
BAD_LINES = [
    ({"image": "absent.png"}, "image '.*absent.png' does not exist; check the path"),
    ({"image": "empty.png"}, r"image '.*empty.png' is empty \(0 bytes\); fetch or write it again"),
    ({"image": "cut.png"}, r"image '.*cut.png' is damaged or truncated .*; fetch or write it again"),
    ({"image": "words.png"}, "image '.*words.png' is not an image that Pillow can read; give a JPEG"),
    ({"image": "."}, "image '.*' is not a file; give the path of one image"),
    ({"image": "long.png"}, "20000x10 pixels .*; crop it or cut it into pieces"),
    (
        {"image": "good.png", "box": [80, 10, 120, 50]},
        r"box \[80, 10, 120, 50\] is outside the image of 90x60.*correct",
    ),
    ({"image": "good.png", "box": [50, 10, 20, 50]}, r"box \[50, 10, 20, 50\] is inverted or empty: expected \[x1"),
    ({"image": "good.png", "box": [1, 2, 3]}, "box is .*expected a list of 4 numbers"),
    ({"image": "good.png", "points": [[91, 5, 1]]}, r"point \(91, 5\) is outside the image of 90x60.*correct it"),
    ({"image": "good.png", "points": [[9, 5, 2]]}, "expected .*label 1 .*or 0"),
    ({"image": "good.png", "mask": "mask.png"}, "mask '.*' is 60x90 .*its image is 90x60.*give the mask in"),
    ({"image": "good.png", "mask": "nothing.png"}, "mask '.*' has no pixel inside .*; leave the mask out"),
    ({"image": "good.png", "mask": "absent.png"}, "mask '.*absent.png' does not exist; check"),
    (
        {"image": "good.png", "text": "<|image_pad|><|image_pad|>"},
        "2 <|image_pad|> in the text for 1 images; write one",
    ),
    ({"image": "good.png", "text": 3}, "text is 3; expected a string"),
    ({"image": "good.png", "txt": "x"}, r"unknown keys \['txt'\]; known are image, text"),
    ({"text": ""}, "neither text nor image; give at least one"),
    ({"text": "x", "box": [1, 2, 3, 4]}, "a visual prompt without an image; give the image"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES, ids=[json.dumps(line) for line, _ in BAD_LINES])
def test_embed_names_the_bad_line_and_keeps_the_output_that_was_there(fails, one_embedder, pictures, line, message):
    source, out = pictures / "input.jsonl", pictures / "out.npz"
    source.write_text(json.dumps(GOOD) + "\n" + json.dumps(line) + "\n")
    out.write_bytes(b"from before")
    before = sorted(pictures.iterdir())
    said = fails("embed", "--model", "unused", "--input", source, "--out", out)
    assert re.match(f"{re.escape(str(source))}:2: .*{message}", said), said
    assert out.read_bytes() == b"from before"
    assert sorted(pictures.iterdir()) == before


@pytest.mark.slow
def test_embed_takes_a_pixel_and_an_image_without_words(one_embedder, pictures):
    lines = [{"image": "dot.png", "points": [[0.5, 0.5, 1]]}, {"image": "good.png", "text": ""}, GOOD]
    (pictures / "input.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    main(["embed", "--model", "x", "--input", str(pictures / "input.jsonl"), "--out", str(pictures / "out.npz")])
    embeddings = np.load(pictures / "out.npz")["embedding"]
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_embed_refuses_bad_files_and_names(fails, pictures):
    (pictures / "good.jsonl").write_text(json.dumps(GOOD))
    (pictures / "empty.jsonl").write_text("")
    (pictures / "half.jsonl").write_text(json.dumps(GOOD) + '\n{"text": "a')
    for source, out, message in [
        ("absent.jsonl", "out.npz", "absent.jsonl: no such file; check the path"),
        ("empty.jsonl", "out.npz", "empty.jsonl: the file is empty; expected one JSON object per line"),
        ("half.jsonl", "out.npz", "half.jsonl:2: not one JSON object"),
        ("good.jsonl", "out.npy", "expected a name that ends in .npz"),
        ("good.jsonl", "nowhere/out.npz", "the folder does not exist; make it first"),
    ]:
        said = fails("embed", "--model", "unused", "--input", pictures / source, "--out", pictures / out)
        assert message in said
        assert not (pictures / out).exists()


def broken(model, copy, how: str):
    """A copy of a model directory with one thing wrong."""
    if how == "absent":
        return copy
    shutil.copytree(model, copy)
    if how == "empty":
        shutil.rmtree(copy)
        copy.mkdir()
    elif how == "config":
        (copy / "virtue_config.json").write_text('{"format": ')
    elif how == "key":
        head = json.loads((copy / "virtue_config.json").read_text())
        head["config"]["text"]["hidden"] = head["config"]["text"].pop("hidden_size")
        (copy / "virtue_config.json").write_text(json.dumps(head))
    elif how == "geometry":
        head = json.loads((copy / "virtue_config.json").read_text())
        head["config"]["text"]["intermediate_size"] += 1
        (copy / "virtue_config.json").write_text(json.dumps(head))
    elif how == "params":
        shutil.rmtree(copy / "params")
    elif how == "data":
        for file in (copy / "params").rglob("*"):
            if file.is_file() and file.stat().st_size > 10_000:
                file.write_bytes(file.read_bytes()[:100])
    elif how == "tokenizer":
        (copy / "tokenizer.json").unlink()
    return copy


BAD_MODELS = {
    "absent": "not a model directory .*make one: python -m converters",
    "empty": "not a model directory .*make one: python -m converters",
    "config": "virtue_config.json is damaged",
    "key": r"virtue_config.json.*text \(TextConfig\): unknown keys \['hidden'\], missing keys \['hidden_size'\]",
    "geometry": "text.layers.mlp.up_proj.kernel has shape",
    "params": "params is missing: the model directory is not whole",
    "data": "params is damaged: ",
    "tokenizer": "neither tokenizer.json nor vocab.json .*copy the tokenizer files",
}


@pytest.mark.parametrize("how", BAD_MODELS)
def test_a_bad_model_directory_is_told_by_embed_and_eval(fails, tiny_virtue, scenes, tmp_path, how):
    model = broken(tiny_virtue, tmp_path / "model", how)
    (tmp_path / "input.jsonl").write_text(json.dumps(GOOD))
    out, work = tmp_path / "out.npz", tmp_path / "work"
    for said in (
        fails("embed", "--model", model, "--input", tmp_path / "input.jsonl", "--out", out),
        fails("eval", "--model", model, "--data", scenes, "--workdir", work),
    ):
        assert str(model) in said
        assert re.search(BAD_MODELS[how], said), said
    assert not out.exists()
    assert not list(work.iterdir())


@pytest.fixture
def spoilt(scenes, tmp_path):
    """`spoilt(how)`: the scenes with one thing wrong in their third row."""

    def make(how: str):
        folder = shutil.copytree(scenes, tmp_path / "scenes")
        for file, split in ((EVAL_FILE, "eval"), (TRAIN_FILE, "train")):
            table = pq.read_table(folder / file)
            rows = table.to_pylist()
            image = folder / "images" / rows[2]["qry_image_path"]
            if how == "column":
                pq.write_table(table.drop_columns(["bbox"]), folder / file)
            elif how == "box":
                rows[2]["bbox"] = [50, 50, 40, 10]
                pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / file)
            elif how == "absent":
                image.unlink()
            elif how == "corrupt":
                image.write_bytes(image.read_bytes()[:200])
            elif how == "parquet":
                (folder / file).write_bytes((folder / file).read_bytes()[:500])
            assert split in rows[2]["qry_image_path"]
        return folder

    return make


BAD_DATA = {
    "column": "{file}: no column bbox; it has .*write the missing columns",
    "box": r"{file}:row 2: box \[50, 50, 90, 60\] is outside the image of 64x64.*correct it",
    "absent": "{file}:row [0-2]: image '.*' is not in the image root '.*'; put it there",
    "corrupt": "{file}:row [0-2]: image '.*' is damaged or truncated .*; fetch",
    "parquet": "SCaR_[a-z]+_scenes.parquet: not a whole parquet file .*; fetch or write it again",
}


@pytest.mark.parametrize("how", BAD_DATA)
def test_eval_names_the_bad_row_and_keeps_the_report_that_was_there(fails, one_embedder, spoilt, tmp_path, how):
    (tmp_path / "scar.json").write_text("from before")
    said = fails("eval", "--model", "unused", "--compat", "paper", "--data", spoilt(how), "--workdir", tmp_path)
    assert re.search(BAD_DATA[how].format(file=EVAL_FILE), said), said
    assert (tmp_path / "scar.json").read_text() == "from before"
    assert not (tmp_path / "scar.png").exists()


@pytest.mark.parametrize("how", ["column", "parquet"])
def test_train_names_the_bad_file_and_leaves_no_model(fails, spoilt, tiny_virtue, tmp_path, how):
    said = fails("train", *tiny_run.COMMAND, "--workdir", tmp_path / "work", *tiny_run.given(spoilt(how), tiny_virtue))
    assert re.search(BAD_DATA[how].format(file=TRAIN_FILE), said), said
    assert not (tmp_path / "work/model").exists()


@pytest.mark.slow
def test_train_stops_where_most_images_are_bad(fails, scenes, tiny_virtue, tmp_path):
    folder = shutil.copytree(scenes, tmp_path / "scenes")
    for image in (folder / "images").rglob("*.png"):
        image.write_bytes(image.read_bytes()[:200])
    said = fails("train", *tiny_run.COMMAND, "--workdir", tmp_path / "work", *tiny_run.given(folder, tiny_virtue))
    assert re.search(r"elements that stream 0 has drawn cannot be used, more than config.data.bad_rows 0.001", said)
    assert re.search(BAD_DATA["corrupt"].format(file=TRAIN_FILE).replace("[0-2]", "[0-9]+"), said), said
    assert not (tmp_path / "work/model").exists()
