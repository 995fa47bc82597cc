"""From image files and JSONL lines to embeddings, as the `virtue embed` command goes, against the golden ones.

The released code counts positions over the left padding of a batch, which no line of JSONL can ask for (an embedding
does not depend on what else is in the batch): the positions of such rows are given to the packed rows.
"""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from golden_files import arrays, facts, stems
from PIL import Image

from virtue_jax.cli.main import main
from virtue_jax.config import Compat, Numerics
from virtue_jax.data.encoding.encode import ExampleEncoder
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.data.example import Example
from virtue_jax.data.formats.jsonl import parse_example
from virtue_jax.data.packing.first_fit import vision_places
from virtue_jax.data.packing.need import need_of, row_shape
from virtue_jax.data.packing.pack import pack_rows
from virtue_jax.embedding.embedder import Embedder
from virtue_jax.model_directory import load_model
from virtue_jax.models.parameters import bind, parameters

pytestmark = [pytest.mark.parity, pytest.mark.slow]

TOLERANCE = 1e-5
COMPANY_TOLERANCE = 1e-6  # other row counts are other programs, which may sum in another order
BFLOAT16_COSINE = 0.99
WEIGHTS = {"embedding": False, "embedding_dora": True}  # golden array -> whether the adapter is on


class Line(NamedTuple):
    """One line of a JSONL file, made of row `row` of the golden file `file`."""

    file: str
    row: int
    record: dict

    @property
    def padding(self) -> int:
        given = arrays(self.file)
        return int((given["attention_mask"][self.row] == 0).sum()) if "attention_mask" in given else 0

    def golden(self, array: str) -> np.ndarray:
        return arrays(self.file)[array][self.row]


def released_lines(file: str) -> list[Line]:
    """The rows of a case. The text rows of `mixed` are left out: there the released code embeds something else."""
    told = facts("cases")["cases"][file.removeprefix("case_")]
    lines = []
    for row, (image, text) in enumerate(zip(told["images"], told["texts"], strict=True)):
        record = {"text": text} | ({"image": f"{image}.png"} if image else {})
        if image and "bboxes" in told:
            record["sam_box"] = told["bboxes"][min(row, len(told["bboxes"]) - 1)]
        if image and "point" in told:
            record["sam_point"] = told["point"]
        if image or not any(told["images"]):
            lines.append(Line(file, row, record))
    return lines


def paper_line(file: str) -> Line:
    told = facts("paper_cases")["cases"][file.removeprefix("paper_")]
    record = {"text": told["text"]}
    if told["images"]:
        record["image"] = [f"{image}.png" for image in told["images"]]
    if "box" in told:
        record["box"] = told["box"]
    if "points" in told:
        labelled = zip(told["points"], told["point_labels"], strict=True)
        record["points"] = [[*point, label] for point, label in labelled]
    if "mask" in told:
        record["mask"] = f"{file}.png"
    return Line(file, 0, record)


MROPE = "case_mrope"  # absent from the subset in the repository
RELEASED = [name for name in stems("case_*") if name != MROPE]
PAPER = [name for name in stems("paper_*") if name != "paper_train"]
LINES = {
    "released": [line for name in RELEASED for line in released_lines(name)],
    "paper": [paper_line(name) for name in PAPER],
    "mrope": released_lines(MROPE) if MROPE in stems("case_*") else [],
}
PADDED = [line for line in LINES["released"] if line.padding and "image" in line.record]
WITHOUT_SEGMENTATION = [line for line in LINES["released"] if "embedding_nosam" in arrays(line.file)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images, masks and one JSONL file per list of `LINES`."""
    folder = tmp_path_factory.mktemp("embed")
    for name in "abcd":
        Image.fromarray(arrays("images")[f"{name}/raw"]).save(folder / f"{name}.png")
    for file in PAPER:
        given = arrays(file)
        if file == "paper_large":
            Image.fromarray(given["raw_0"]).save(folder / "L.png")
        if "mask" in given:
            Image.fromarray(given["mask"]).save(folder / f"{file}.png")
    for name, lines in LINES.items():
        write_lines(folder / f"{name}.jsonl", lines)
    return folder


def write_lines(path: Path, lines: list[Line]) -> None:
    path.write_text("".join(json.dumps(line.record) + "\n" for line in lines))


@pytest.fixture(scope="module")
def command(folder, tiny_model_dir):
    """`command(file, adapter, **options)`: what `virtue embed` makes of FILE.jsonl; the same is not run twice."""
    made = {}

    def run(file: str, adapter: bool, **options) -> np.ndarray:
        key = (file, adapter, *sorted(options.items()))
        if key not in made:
            out = folder / "out.npz"
            arguments = ["--model", str(tiny_model_dir(adapter)), "--input", str(folder / f"{file}.jsonl")]
            settings = (f"--{name}={value}" for name, value in options.items())
            main(["embed", *arguments, "--out", str(out), *settings])
            with np.load(out) as written:
                assert written.files == ["embedding"]
                made[key] = written["embedding"]
        return made[key]

    return run


def assert_golden(got: np.ndarray, lines: list[Line], array: str, keep=lambda line: True) -> None:
    assert (got.dtype, got.shape) == (np.float32, (len(lines), 64))
    far = {
        f"{line.file}[{line.row}]": float(np.abs(z - line.golden(array)).max())
        for z, line in zip(got, lines, strict=True)
        if keep(line)
    }
    assert far
    assert max(far.values()) < TOLERANCE, far


@pytest.mark.parametrize("array", WEIGHTS)
def test_released_positions_of_the_first_call(command, array):
    got = command("released", WEIGHTS[array], compat="released", positions="sequential")
    assert_golden(got, LINES["released"], f"{array}_firstcall")


@pytest.mark.parametrize("array", WEIGHTS)
def test_released_positions_of_later_calls(command, array):
    got = command("released", WEIGHTS[array], compat="released")
    np.testing.assert_array_equal(got, command("released", WEIGHTS[array], positions="prefix"))  # the model's own
    assert_golden(got, LINES["released"], array, lambda line: line not in PADDED)


@pytest.mark.parametrize("array", WEIGHTS)
def test_paper(command, array):
    got = command("paper", WEIGHTS[array], compat="paper")
    assert_golden(got, LINES["paper"], array)


@pytest.mark.skipif(not LINES["mrope"], reason="the subset in the repository has no case_mrope.npz")
@pytest.mark.parametrize("array", WEIGHTS)
def test_released_inputs_with_true_mrope(command, array):
    got = command("mrope", WEIGHTS[array], compat="released", positions="mrope")
    assert_golden(got, LINES["mrope"], array)


@pytest.mark.parametrize("array", WEIGHTS)
def test_left_padded_rows_with_the_positions_that_they_had(folder, tiny_model_dir, array):
    config, model = load_model(tiny_model_dir(WEIGHTS[array]), Numerics(), compat=Compat.released())
    encoder = ExampleEncoder(config, Tokenizer.load(tiny_model_dir(WEIGHTS[array])))
    run = jax.jit(lambda params, batch: bind(model, params)(batch))
    got = []
    for line in PADDED:
        given = arrays(line.file)
        encoded = encoder.encode(example(line, folder))
        positions = given["position_ids"][:, line.row, given["lm_mask"][line.row] == 1]
        assert (positions != encoded.positions).any()
        encoded = dataclasses.replace(encoded, positions=positions.astype(np.int32))
        shape = row_shape([[encoded]], slots=128, patches=64)
        batch = pack_rows([[encoded]], shape, config, vision=vision_places([need_of([encoded])], shape))
        got.append(run(parameters(model), batch)[0, 0])
    assert_golden(np.array(got), PADDED, array)


def test_without_segmentation_it_is_the_plain_qwen2_vl_embedder(folder, tiny_model_dir):
    embedder = Embedder.load(tiny_model_dir(), compat="released")
    got = embedder.embed([example(line, folder) for line in WITHOUT_SEGMENTATION], segmentation=False)
    assert_golden(got, WITHOUT_SEGMENTATION, "embedding_nosam")


def test_the_merged_folder_embeds_as_the_adapter_does(folder, tiny_model_dir, golden):
    merged = tiny_model_dir(
        vlm=None, connector=None, virtue=golden / "tiny" / "virtue_hf", processor=golden / "tiny" / "vlm"
    )
    lines = [line for line in LINES["released"] if line not in PADDED]
    got = Embedder.load(merged, compat="released").embed([example(line, folder) for line in lines])
    assert_golden(got, lines, "embedding_dora")


def test_the_trainers_checkpoint_holds_the_same_adapter_and_connector(tiny_model_dir, golden):
    saved = golden / "tiny" / "train_checkpoint"
    folders = (
        tiny_model_dir(adapter=True),
        tiny_model_dir(adapter=saved, connector=saved / "sam2_reducer_and_vlm_layer.pth"),
    )
    (one_config, one), (other_config, other) = (load_model(folder, Numerics()) for folder in folders)
    assert one_config == other_config
    one, other = parameters(one), parameters(other)
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)


def test_order_company_and_form_of_the_input_do_not_matter(command, folder, tiny_model_dir):
    expected = command("paper", True, compat="paper")
    order = np.random.default_rng(0).permutation(len(LINES["paper"]))
    embedder = Embedder.load(tiny_model_dir(True), compat="paper", image_rows=2, text_rows=1)
    given = [example(LINES["paper"][i], folder) for i in order]
    np.testing.assert_allclose(embedder.embed(given), expected[order], atol=COMPANY_TOLERANCE)
    for i, one in zip(order[:4], given, strict=False):
        images = tuple(Path(image).read_bytes() for image in one.images)
        alone = embedder.embed([dataclasses.replace(one, images=images)])
        np.testing.assert_allclose(alone[0], expected[i], atol=COMPANY_TOLERANCE)


def test_dicts_are_embedded_as_the_lines_of_a_file(command, folder, tiny_model_dir, monkeypatch):
    monkeypatch.chdir(folder)
    chosen = [i for i, line in enumerate(LINES["released"]) if line.file in ("case_text", "case_wide")]
    got = Embedder.load(tiny_model_dir()).embed([LINES["released"][i].record for i in chosen])
    expected = command("released", False, compat="released")[chosen]
    np.testing.assert_allclose(got, expected, atol=COMPANY_TOLERANCE)


def test_prompts_may_be_tuples_and_arrays(tmp_path, tiny_model_dir):
    embedder, image = Embedder.load(tiny_model_dir(), compat="paper"), tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(image)
    asked = {"image": str(image), "text": "this"}
    lists = asked | {"box": [1, 2, 9, 8], "points": [[3, 4, 1], [5.5, 6, 0]]}
    tuples = asked | {"box": (1, 2, 9, 8), "points": ((3, 4, 1), (5.5, 6, 0))}
    arrays = asked | {"box": np.array([1, 2, 9, 8]), "points": np.array([[3, 4, 1], [5.5, 6, 0]], np.float32)}
    one, other, another = (embedder.embed([given]) for given in (lists, tuples, arrays))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one, another)


def test_rows_per_call_are_at_least_one(tiny_model_dir):
    with pytest.raises(ValueError, match="image_rows is -2: expected at least 1"):
        Embedder.load(tiny_model_dir(), image_rows=-2)


@pytest.mark.parametrize("compat", ["released", "paper"])
def test_bfloat16_stays_close_to_float32(command, compat):
    exact, rounded = (command(compat, True, compat=compat, **more) for more in ({}, {"dtype": "bfloat16"}))
    assert np.abs(exact - rounded).max() > 1e-4  # it was another arithmetic
    np.testing.assert_allclose(np.linalg.norm(rounded, axis=-1), 1, atol=1e-5)
    assert (exact * rounded).sum(-1).min() > BFLOAT16_COSINE


def example(line: Line, folder: Path) -> Example:
    return parse_example(line.record, folder, f"{line.file}[{line.row}]")
