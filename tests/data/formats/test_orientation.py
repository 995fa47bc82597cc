"""Which pictures are turned upright: people's own, not those of the published sets, and none by a released model."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from virtue_jax.config import Compat, from_dict, to_dict
from virtue_jax.data.encoding.encode import ExampleEncoder
from virtue_jax.data.formats.jsonl import JsonlTraining, parse_example, read_examples
from virtue_jax.data.formats.mmeb import MmebTraining
from virtue_jax.data.formats.record_reader import PreparedTraining
from virtue_jax.data.formats.record_writer import prepare
from virtue_jax.data.formats.scar import ScarEvaluation, ScarTraining
from virtue_jax.data.row_groups.measure import LengthMeasure
from virtue_jax.data.scenes import write_scenes


@pytest.fixture
def folder(tmp_path, noise):
    """turned.jpg: stored as 90x60 (width x height), seen as 60x90; and a mask of the picture as seen."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(tmp_path / "turned.jpg", exif=exif)
    mask = np.zeros((90, 60), np.uint8)
    mask[10:40, 5:30] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path


LINE = {"image": "turned.jpg", "text": "the dog", "box": [1, 2, 50, 80], "mask": "mask.png"}


def size_of(example, encoder) -> tuple[int, int]:
    return encoder.encode(example).images[0].size


def test_own_pictures_are_read_upright(folder, small_sam_encoder):
    (folder / "in.jsonl").write_text(json.dumps(LINE))
    (folder / "train.jsonl").write_text(json.dumps({"query": LINE, "positive": {"image": "turned.jpg"}}))
    pair = JsonlTraining(folder / "train.jsonl").pair(0)
    for example in (*read_examples(folder / "in.jsonl"), parse_example(LINE, folder, "x"), pair.query, pair.positive):
        assert example.upright and size_of(example, small_sam_encoder) == (90, 60)


def test_published_pictures_are_read_as_stored(folder, small_sam_encoder):
    write_scenes(folder / "scenes", train=1, eval=1, seed=2, width=(96, 96), height=(96, 96), objects=(2, 3))
    for source in (ScarTraining(folder / "scenes"), ScarEvaluation(folder / "scenes")):
        query = source.pair(0).query if isinstance(source, ScarTraining) else source[0].query
        assert not query.upright
    (folder / "set").mkdir()
    row = {"qry": "x", "qry_image_path": "turned.jpg", "pos_text": "", "pos_image_path": "turned.jpg"}
    pq.write_table(pa.Table.from_pylist([row]), folder / "set/original.parquet")
    pair = MmebTraining(folder / "set", image_root=folder).pair(0)
    for example in (pair.query, pair.positive):
        assert not example.upright and size_of(example, small_sam_encoder) == (60, 90)


def test_prepared_pairs_are_read_as_their_originals(folder, small_sam_encoder):
    (folder / "train.jsonl").write_text(json.dumps({"query": LINE, "positive": {"image": "turned.jpg"}}))
    (folder / "prepared").mkdir()
    original = JsonlTraining(folder / "train.jsonl").pair(0)
    assert not prepare(JsonlTraining(folder / "train.jsonl"), folder / "prepared").bad
    ((read,),) = (PreparedTraining(folder / "prepared")[0],)
    measure = LengthMeasure(small_sam_encoder.config, small_sam_encoder.tokenizer)
    for ours, theirs in ((read.query, original.query), (read.positive, original.positive)):
        ours_encoded, theirs_encoded = small_sam_encoder.encode(ours), small_sam_encoder.encode(theirs)
        np.testing.assert_array_equal(ours_encoded.images[0].patches, theirs_encoded.images[0].patches)
        assert ours_encoded.images[0].size == (90, 60)
        assert measure.example(ours).slots == len(ours_encoded) == measure.example(theirs).slots
    np.testing.assert_array_equal(
        small_sam_encoder.encode(read.query).prompt.mask, small_sam_encoder.encode(original.query).prompt.mask
    )


def test_the_released_behaviour_reads_every_picture_as_stored(folder, small_sam_encoder):
    released = ExampleEncoder(small_sam_encoder.config, small_sam_encoder.tokenizer, Compat.released())
    example = parse_example({"image": "turned.jpg", "text": "the dog", "box": [1, 2, 80, 50]}, folder, "x")
    assert example.upright and size_of(example, released) == (60, 90)
    measure = LengthMeasure(released.config, released.tokenizer)
    assert measure.example(example).slots == len(released.encode(example))


def test_models_saved_before_the_field_was_there_still_load():
    values = to_dict(Compat.paper())
    assert values.pop("exif_orientation") == "apply"
    assert from_dict(Compat, values) == Compat.paper()
    assert Compat.released().exif_orientation == "ignore"
    with pytest.raises(ValueError, match="exif_orientation: 'sideways' is not one of apply, ignore"):
        dataclasses.replace(Compat.paper(), exif_orientation="sideways")
