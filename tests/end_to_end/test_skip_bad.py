"""`--skip-bad` of embed and eval: the rest is kept, what is left out is listed, and the model runs last."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from virtue_jax.cli.main import main
from virtue_jax.data.encoding.encode import ExampleEncoder
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.embedding.embedder import Embedder
from virtue_jax.model_directory import load_config


class Reader:
    """An embedder that reads everything and computes nothing: the vector of an example is its number of tokens."""

    def __init__(self, model: Path):
        self.encoder, self.calls = ExampleEncoder(load_config(model), Tokenizer.load(model)), 0

    def embed(self, examples, progress=None):
        self.calls += 1
        lengths = [len(self.encoder.encode(example)) for example in examples]
        return np.array(lengths, np.float32)[:, None] * np.ones((1, 4), np.float32)


@pytest.fixture
def reader(tiny_virtue, monkeypatch):
    reader = Reader(tiny_virtue)
    monkeypatch.setattr(Embedder, "load", lambda *_, **__: reader)
    return reader


@pytest.fixture
def lines(tmp_path) -> list[dict | str]:
    """Good lines 1, 4 and 6; the text of 2, the header of 3 and the pixels of 5 are bad."""
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    good = {"image": "good.png", "text": "a dog", "box": [1, 1, 30, 40]}
    return [good, "{half", good | {"box": [100, 1, 140, 40]}, {"text": "a cat"}, {"image": "cut.png"}, good]


def embed(folder: Path, lines: list, *options: str) -> None:
    written = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "in.jsonl").write_text("\n".join(written) + "\n")
    main(["embed", "--model", "m", "--input", str(folder / "in.jsonl"), "--out", str(folder / "out.npz"), *options])


def listed(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_embed_keeps_the_good_lines_and_lists_the_others(reader, lines, tmp_path, capsys):
    embed(tmp_path, lines, "--skip-bad")
    out = np.load(tmp_path / "out.npz")
    assert out["line"].tolist() == [1, 4, 6] and out["line"].dtype == np.int64
    np.testing.assert_array_equal(out["embedding"][0], out["embedding"][2])
    assert out["embedding"].shape == (3, 4) and (out["embedding"][1] < out["embedding"][0]).all()
    found = listed(tmp_path / "out.quarantine.jsonl")
    assert [(entry["element"], entry["origin"]) for entry in found] == [
        (line, f"{tmp_path / 'in.jsonl'}:{line}") for line in (2, 3, 5)
    ]
    for entry, message in zip(found, ["not one JSON object", "is outside the image", "cut.png"], strict=True):
        assert message in entry["error"]
    assert "left out: 3 of 6 lines, listed in" in capsys.readouterr().out
    embed(tmp_path, [lines[0]], "--skip-bad")  # the list is of the last command
    assert not (tmp_path / "out.quarantine.jsonl").exists() and np.load(tmp_path / "out.npz")["line"].tolist() == [1]
    embed(tmp_path, [lines[0]])
    assert np.load(tmp_path / "out.npz").files == ["embedding"]


def test_what_a_header_shows_of_a_late_line_is_told_before_the_model_runs(reader, lines, tmp_path, fails, capsys):
    for bad, message in [(lines[1], "not one JSON object"), (lines[2], "is outside the image")]:
        with pytest.raises(SystemExit):
            embed(tmp_path, [lines[0]] * 30 + [bad])
        said = capsys.readouterr().err.strip()
        assert said.startswith(f"virtue embed: {tmp_path / 'in.jsonl'}:31: ") and message in said
    assert reader.calls == 0
    with pytest.raises(SystemExit):
        embed(tmp_path, [lines[1], lines[4]], "--skip-bad")
    assert "no line of it can be embedded; the first: " in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()


@pytest.fixture
def spoilt(scenes, tmp_path) -> tuple[Path, dict[int, str]]:
    """Evaluation scenes, and {row: what is wrong with it}; the last row's box is what its header shows."""
    folder = shutil.copytree(scenes, tmp_path / "scenes")
    (file,) = folder.glob("SCaR_eval_*.parquet")
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows[-1]["bbox"] = [500, 500, 20, 20]
    first = rows[0]["qry_image_path"]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), file)
    image = folder / "images" / first
    image.write_bytes(image.read_bytes()[:-100])
    wrong = {row: "is damaged or truncated" for row, values in enumerate(rows) if values["qry_image_path"] == first}
    return folder, wrong | {len(rows) - 1: "is outside the image"}


def test_eval_counts_and_lists_what_it_leaves_out(reader, spoilt, tmp_path, capsys):
    folder, wrong = spoilt
    work = tmp_path / "work"
    main(["eval", "--model", "m", "--compat", "paper", "--data", str(folder), "--workdir", str(work), "--skip-bad"])
    told = capsys.readouterr().out
    assert f"{len(wrong)} questions could not be read" in told and str(work / "quarantine.jsonl") in told
    written = json.loads((work / "scar.json").read_text())
    total = pq.read_table(next(folder.glob("SCaR_eval_*.parquet"))).num_rows
    assert written["left_out"] == len(wrong) and written["results"]["prompt"]["questions"] == total - len(wrong)
    found = {entry["element"]: entry["error"] for entry in listed(work / "quarantine.jsonl")}
    assert found.keys() == wrong.keys() and all(message in found[row] for row, message in wrong.items())


def test_eval_tells_what_a_header_shows_of_the_last_row_before_the_model_runs(reader, spoilt, tmp_path, fails):
    folder, wrong = spoilt
    said = fails("eval", "--model", "m", "--compat", "paper", "--data", folder, "--workdir", tmp_path / "work")
    assert f"row {max(wrong)}: box" in said and "is outside the image" in said
    assert reader.calls == 0 and not (tmp_path / "work/scar.json").exists()
