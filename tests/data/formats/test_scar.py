"""SCaR parquet: the published schemas come out as pairs and questions, and bad rows are named."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from virtue_jax.data.example import InvalidExample
from virtue_jax.data.formats.scar import ScarEvaluation, ScarTraining, dataset_name
from virtue_jax.data.masks import decode_segmentation, deepest_pixel, rle_encode
from virtue_jax.data.scenes import EVAL_FILE, QUERY_TEXT, TRAIN_FILE, write_scenes

QUERY = "<|image_1|>\nFind the caption that best describes the segmented object."
TYPES = ["gt"] + ["global_context"] * 3 + ["background_relation"] * 3 + ["object_swap"] * 3
HEIGHT, WIDTH = 20, 30


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, train=6, eval=4, seed=2, width=(96, 96), height=(96, 96))
    return folder


@pytest.fixture
def published(tmp_path):
    """A folder as the published one, its rows made of `row(...)`."""
    (tmp_path / "ade20k_val").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "ade20k_val/a.png")
    return tmp_path


def question(**changes):
    return {
        "qry_text": QUERY,
        "qry_image_path": "ade20k_val/a.png",
        "tgt_text": [f"caption {i}" for i in range(10)],
        "tgt_image_path": [""] * 10,
        "original_caption": "caption",
        "neg_types": TYPES,
        "bbox": [3, 4, 10, 6],
        "segmentation": None,
        "category": "grass",
        "image_id": 7,
    } | changes


def pair(**changes):
    return {
        "qry": QUERY,
        "qry_image_path": "ade20k_val/a.png",
        "pos_text": "the caption",
        "pos_image_path": "",
        "bbox": [3.5, 4.0, 10.0, 6.25],
        "segmentation": None,
        "category": "grass",
        "image_id": 7,
    } | changes


def write(folder, name, *rows):
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / name)
    return folder / name


def test_published_eval_row(published):
    write(published, "SCaR_eval_ADE20K.parquet", question(), question(image_id=8))
    source = ScarEvaluation(published)
    assert len(source) == 2
    asked = source[1]
    assert asked.query.text == QUERY
    assert asked.query.images == (str(published / "ade20k_val/a.png"),)
    assert asked.box == asked.query.prompt.box == (3, 4, 13, 10)
    assert all(isinstance(v, int) for v in asked.box), "integers stay integers in the prompt's text"
    assert asked.candidates[asked.answer] == "caption 0" and asked.types == tuple(TYPES)
    assert (asked.point, asked.mask) == (None, None)
    assert (asked.category, asked.image_id, asked.dataset, asked.row) == ("grass", 8, "ADE20K", 1)
    assert asked.origin == "SCaR_eval_ADE20K.parquet:row 1"
    assert source.rows_by_image() == {("SCaR_eval_ADE20K.parquet", "ade20k_val/a.png"): [0, 1]}


def test_published_train_row_with_and_without_negatives(published):
    write(published, "SCAR_ADE20K.parquet", pair())
    plain = ScarTraining(published).pair(0)
    assert plain.query.prompt.box == (3.5, 4.0, 13.5, 10.25)
    assert (plain.positive.text, plain.positive.images, plain.negatives) == ("the caption", (), ())
    write(published, "one.parquet", pair(neg_text="wrong"))
    assert [n.text for n in ScarTraining(published / "one.parquet").pair(0).negatives] == ["wrong"]
    write(published, "two.parquet", pair(neg_text=["wrong", "", "bad"], neg_image_path=["", "", "ade20k_val/a.png"]))
    negatives = ScarTraining(published / "two.parquet").pair(0).negatives
    assert [(n.text, len(n.images)) for n in negatives] == [("wrong", 0), ("bad", 1)]


def test_several_files_read_as_one_and_a_folder_gives_its_own_sort(published):
    write(published, "SCaR_eval_A.parquet", question(), question())
    write(published, "SCaR_eval_B.parquet", question(category="sky"))
    write(published, "SCaR_train_A.parquet", pair())
    source = ScarEvaluation(published)
    assert [source[i].dataset for i in range(3)] == ["A", "A", "B"]
    assert source[2].category == "sky" and source.origin(2) == "SCaR_eval_B.parquet:row 0"
    assert len(ScarTraining(published)) == 1
    with pytest.raises(IndexError):
        source[3]


def test_dataset_names():
    names = ("SCaR_eval_COCO_Stuff", "SCAR_RefCOCO_plus_val_filtered", "SCaR_train_scenes", "SCAR_VisualGenome")
    from pathlib import Path

    assert [dataset_name(Path(f"{n}.parquet")) for n in names] == [
        "COCO_Stuff",
        "RefCOCO_plus",
        "scenes",
        "VisualGenome",
    ]


def test_scenes_come_back_with_point_and_mask(scenes):
    source = ScarEvaluation(scenes, masks=True, prompt="point")
    for row, raw in enumerate(pq.read_table(scenes / EVAL_FILE).to_pylist()):
        asked = source[row]
        assert asked.query.text == QUERY_TEXT
        assert asked.point == tuple(raw["point"]) and asked.query.prompt.points == ((*raw["point"], 1),)
        assert asked.mask[asked.point[1], asked.point[0]] and asked.mask.shape == (96, 96)
        x1, y1, x2, y2 = asked.box
        assert asked.mask[y1:y2, x1:x2].sum() == asked.mask.sum()


def test_prompt_kinds_follow_weights_seed_and_row(scenes):
    def kinds(**options):
        source = ScarTraining(scenes, **options)
        prompts = [source.pair(row).query.prompt for row in range(len(source))]
        return ["none" if p is None else "box" if p.box else "point" if p.points else "mask" for p in prompts]

    mixed = {"box": 1, "point": 1, "mask": 1, "none": 1}
    assert set(kinds(prompts=mixed)) == set(mixed)
    assert kinds(prompts=mixed) == kinds(prompts=mixed) != kinds(prompts=mixed, seed=1)
    assert set(kinds(prompts={"mask": 2.0, "box": 0})) == {"mask"}
    assert set(kinds()) == {"box"}


def test_every_form_of_segmentation_gives_its_mask(published):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:9, 4:20] = True
    mask[6, 10] = False
    rle = rle_encode(mask)
    box = np.zeros_like(mask)
    box[5:9, 4:20] = True
    polygon = [[4.0, 5.0, 20.0, 5.0, 20.0, 9.0, 4.0, 9.0]]
    packed = compress(rle["counts"])
    forms = [(rle, mask), ({**rle, "counts": packed}, mask), (polygon, box), (packed, mask), (packed.encode(), mask)]
    for form, expected in forms:
        write(published, "SCaR_eval_X.parquet", question(segmentation=form))
        asked = ScarEvaluation(published / "SCaR_eval_X.parquet", masks=True)[0]
        assert np.array_equal(asked.mask, expected), form
        assert asked.mask[asked.point[1], asked.point[0]]


def compress(counts):
    """COCO's compressed run lengths, written from the format's definition: the other way round."""
    text = ""
    for i, count in enumerate(counts):
        value, more = count - (counts[i - 2] if i > 2 else 0), True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text += chr((bits | (32 if more else 0)) + 48)
    return text


def test_compressed_runs_of_random_masks_decode():
    rng = np.random.default_rng(0)
    for density in (0.02, 0.5, 0.98):
        mask = rng.random((57, 43)) < density
        rle = rle_encode(mask)
        assert np.array_equal(decode_segmentation({**rle, "counts": compress(rle["counts"])}, 57, 43), mask)
        assert sum(rle["counts"]) == mask.size


def test_deepest_pixel_lies_in_the_thickest_part():
    mask = np.zeros((40, 40), bool)
    mask[5:35, 3:6] = True
    mask[20:31, 3:30] = True
    x, y = deepest_pixel(mask)
    assert 23 <= y <= 27 and mask[y - 5 : y + 6, x - 5 : x + 6].all()


def test_pickled_sources_read_the_same(scenes):
    source = ScarTraining(scenes)
    assert source[3] == pickle.loads(pickle.dumps(source))[3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, 3]}, "expected four finite numbers"),
        ({"bbox": [1, 2, 0, 3]}, "is empty"),
        ({"bbox": [1.0, 2.0, float("nan"), 3.0]}, "expected four finite numbers"),
        ({"bbox": None}, "expected four finite numbers"),
        ({"tgt_text": ["a"] * 9}, "tgt_text has 9 entries"),
        ({"neg_types": TYPES[::-1]}, "'gt' first"),
        ({"tgt_image_path": ["x.png"] + [""] * 9}, "candidates are texts"),
        ({"qry_image_path": "ade20k_val/b.png"}, "'ade20k_val/b.png' is not in the image root"),
        ({"qry_image_path": ""}, "expected a path"),
        ({"qry_text": None}, "qry_text is None"),
    ],
)
def test_bad_eval_rows_are_named(published, change, message):
    write(published, "SCaR_eval_X.parquet", question(), question(**change))
    with pytest.raises(InvalidExample, match=message) as error:
        ScarEvaluation(published)[1]
    assert str(error.value).startswith("SCaR_eval_X.parquet:row 1: ")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "no segmentation"),
        ({"size": [HEIGHT, WIDTH + 1], "counts": [630]}, r"the image is \[20, 30\]"),
        ({"size": [HEIGHT, WIDTH], "counts": [5]}, "expected 600 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [600]}, "no pixel inside"),
        ([[1.0, 2.0, 3.0, 4.0]], "at least three"),
        ("P", "cut off"),
    ],
)
def test_bad_segmentations_are_named(published, segmentation, message):
    write(published, "SCaR_train_X.parquet", pair(segmentation=segmentation))
    source = ScarTraining(published, prompts={"mask": 1})
    with pytest.raises(InvalidExample, match=message) as error:
        source.pair(0)
    assert "SCaR_train_X.parquet:row 0" in str(error.value)


def test_bad_files_are_named(published):
    row = question()
    del row["bbox"], row["neg_types"]
    file = write(published, "SCaR_eval_X.parquet", row)
    with pytest.raises(InvalidExample, match=r"SCaR_eval_X.parquet: no column neg_types, bbox; it has qry_text"):
        ScarEvaluation(file)
    with pytest.raises(InvalidExample, match="no such file"):
        ScarEvaluation(published / "absent.parquet")
    with pytest.raises(InvalidExample, match=r"no parquet file with column 'qry'.*SCaR_eval_X\.parquet"):
        ScarTraining(published)
    (published / "cut.parquet").write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InvalidExample, match=r"cut.parquet: not a whole parquet file"):
        ScarEvaluation(published / "cut.parquet")
    with pytest.raises(InvalidExample, match="no parquet file given"):
        ScarTraining([])


def test_unknown_prompt_kinds_are_refused(scenes):
    with pytest.raises(ValueError, match="circle"):
        ScarTraining(scenes / TRAIN_FILE, prompts={"circle": 1})
    with pytest.raises(ValueError, match="not all 0"):
        ScarTraining(scenes / TRAIN_FILE, prompts={"box": 0})
