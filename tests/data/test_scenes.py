"""Scenes: what they say is true, what they deny is false, and they never change."""

import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from virtue_jax.data.masks import decode_segmentation, rle_encode
from virtue_jax.data.scenes import EVAL_FILE, IMAGE_FOLDER, QUERY_TEXT, TRAIN_FILE, Vocabulary, make_scene, write_scenes
from virtue_jax.data.scenes.vocabulary import COLOURS, KINDS, SCENES, TEXTURES

SMALL = {"width": (96, 128), "height": (96, 128)}
COUNT = 250
CORNERS = {"upper left": (0, 0), "upper right": (1, 0), "lower left": (0, 1), "lower right": (1, 1)}
SIDES = {"left": (0, 0), "right": (0, 1), "top": (1, 0), "bottom": (1, 1)}


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(11, index, **SMALL) for index in range(COUNT)]


def parse(caption):
    """(description, relation, scene) of a caption, by its words alone."""
    scene = next(s for s in SCENES if caption.endswith(" " + s))
    words = caption[: -len(scene) - 1].split(" ")[1:]
    place = next(i for i, word in enumerate(words) if word in COLOURS)
    after = " ".join(words[place + 1 :])
    kind = next(k for k in KINDS if after.startswith(k + " "))
    return (" ".join(words[:place]), words[place], kind), after[len(kind) + 1 :], scene


def certainty(relation, scene, thing):
    """1 = plainly true of the object, 0 = plainly false, None = a matter of taste. Own geometry, in floats."""
    height, width = scene.image.shape[:2]
    x, y = (thing.box[0] + thing.box[2] / 2) / width, (thing.box[1] + thing.box[3] / 2) / height
    for word, (cx, cy) in CORNERS.items():
        if relation == f"in the {word} corner":
            distance = max(abs(x - cx), abs(y - cy))
            return 1 if distance <= 0.335 else 0 if distance >= 0.415 else None
    if relation == "in the center":
        distance = max(abs(x - 0.5), abs(y - 0.5))
        return 1 if distance <= 0.165 else 0 if distance >= 0.245 else None
    for word, (axis, end) in SIDES.items():
        along, across = (x, y) if axis == 0 else (y, x)
        if relation == f"near the {word} edge":
            return 1 if abs(along - end) <= 0.335 else 0 if abs(along - end) >= 0.415 else None
        if relation == f"at the middle of the {word} edge":
            if abs(along - end) >= 0.415 or abs(across - 0.5) >= 0.245:
                return 0
            return 1 if abs(along - end) <= 0.335 and abs(across - 0.5) <= 0.165 else None
    direction, name = relation.split(" the ", 1) if " of the " not in relation else relation.rsplit(" the ", 1)
    anchor = next(o for o in scene.objects if str(o.description) == name)
    assert anchor is not thing, relation
    dx = thing.box[0] + thing.box[2] / 2 - anchor.box[0] - anchor.box[2] / 2
    dy = thing.box[1] + thing.box[3] / 2 - anchor.box[1] - anchor.box[3] / 2
    steps = {"to the left of": (-dx, dy), "to the right of": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}
    ahead, aside = steps[direction]
    angle = np.degrees(np.arctan2(abs(aside), ahead))
    return 1 if angle <= 26.6 else 0 if angle >= 56.3 else None


def objects(scenes):
    return [(scene, thing) for scene in scenes for thing in scene.objects]


def test_every_caption_is_true_of_its_object_and_plainly_false_of_the_others(scenes):
    for scene, thing in objects(scenes):
        description, relation, background = parse(thing.caption)
        assert description == (thing.description.texture, thing.description.colour, thing.description.kind)
        assert background == scene.scene
        assert certainty(relation, scene, thing) == 1, (relation, thing.box)
        for other in scene.objects:
            if other is not thing and not relation.endswith(f"the {other.description}"):
                assert certainty(relation, scene, other) == 0, (relation, other.box)


def test_distractors_differ_from_the_truth_in_one_part_that_is_false(scenes):
    for scene, thing in objects(scenes):
        assert len(set(thing.candidates)) == 10
        truth, *swaps = map(parse, thing.candidates)
        others = {(o.description.colour, o.description.kind): o.description.texture for o in scene.objects}
        for number, swap in enumerate(swaps):
            changed = [a != b for a, b in zip(truth, swap, strict=True)]
            assert changed == [number >= 6, 3 <= number < 6, number < 3], swap
            if changed[1]:
                assert certainty(swap[1], scene, thing) == 0, (swap, thing.box)
            if changed[0]:
                assert swap[0][1:] != truth[0][1:], "differs in more than the texture"
                assert f"the {' '.join(filter(None, swap[0]))}" not in swap[1], "names itself"
                assert others.get(swap[0][1:], swap[0][0]) == swap[0][0], "neither in the image nor absent"


def test_distractors_come_from_the_same_image_where_it_has_them(scenes):
    for scene, thing in objects(scenes):
        (_, relation, _), *swaps = map(parse, thing.candidates)
        usable = [o for o in scene.objects if o is not thing and not relation.endswith(f"the {o.description}")]
        mine = {(o.description.texture, o.description.colour, o.description.kind) for o in usable}
        assert sum(swap[0] in mine for swap in swaps[6:]) == min(3, len(mine))
        theirs = {parse(o.caption)[1] for o in scene.objects if o is not thing}
        theirs = {r for r in theirs if not r.endswith(f"the {thing.description}")}
        assert sum(swap[1] in theirs for swap in swaps[3:6]) == min(3, len(theirs))


def test_objects_of_an_image_have_different_colour_and_kind(scenes):
    for scene in scenes:
        assert len({(o.description.colour, o.description.kind) for o in scene.objects}) == len(scene.objects)
        assert 3 <= len(scene.objects) <= 6


def test_masks_boxes_and_points_agree_and_objects_do_not_touch(scenes):
    for scene in scenes:
        height, width = scene.image.shape[:2]
        total = np.zeros((height, width), int)
        for thing in scene.objects:
            x, y, w, h = thing.box
            rows, columns = np.nonzero(thing.mask)
            assert (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1) == thing.box
            assert thing.mask.shape == (height, width) and x >= 0 and x + w <= width and y + h <= height
            assert thing.mask[thing.point[1], thing.point[0]]
            assert np.array_equal(decode_segmentation(rle_encode(thing.mask), height, width), thing.mask)
            total += thing.mask
        assert total.max() == 1


def test_objects_are_drawn_where_their_masks_say(scenes):
    for scene, thing in objects(scenes[:40]):
        inside = scene.image[thing.mask].astype(int)
        first = np.array(COLOURS[thing.description.colour][0])
        near = (np.abs(inside - first).max(-1) < 12).mean()
        assert near > 0.1, thing.description


def test_both_sorts_of_relation_and_every_word_occur(scenes):
    captions = [parse(thing.caption) for _, thing in objects(scenes)]
    relative = np.mean([any(f" {c} " in f" {r} " for c in COLOURS) for _, r, _ in captions])
    assert 0.25 < relative < 0.75
    assert {d[0] for d, _, _ in captions} == set(TEXTURES)
    assert {d[1] for d, _, _ in captions} == set(COLOURS) and {d[2] for d, _, _ in captions} == set(KINDS)
    assert {s for _, _, s in captions} == set(SCENES)


def test_scenes_are_what_they_have_always_been():
    pixels, labels = hashlib.sha256(), hashlib.sha256()
    for index in (0, 1, 2, 1 << 40):
        scene = make_scene(7, index, width=(96, 200), height=(80, 160))
        pixels.update(scene.image.tobytes())
        told = [[o.box, o.point, rle_encode(o.mask)["counts"], o.candidates] for o in scene.objects]
        labels.update(json.dumps(told).encode())
    assert labels.hexdigest()[:16] == "f7e7d413fc16b2e6"
    assert pixels.hexdigest()[:16] == "e8d982256d605bb3"


def test_a_scene_depends_on_seed_and_index_alone():
    first = make_scene(3, 5, **SMALL)
    make_scene(3, 6, **SMALL)
    assert np.array_equal(first.image, make_scene(3, 5, **SMALL).image)
    assert not any(
        first.image.shape == other.image.shape and np.array_equal(first.image, other.image)
        for other in (make_scene(4, 5, **SMALL), make_scene(3, 6, **SMALL))
    )


def test_native_sizes_and_many_objects():
    scene = make_scene(0, 0, width=(640, 640), height=(480, 480), objects=(9, 9))
    assert scene.image.shape == (480, 640, 3) and len(scene.objects) == 9
    assert make_scene(0, 1, width=(1000, 1000), height=(64, 64)).image.shape == (64, 1000, 3)


def test_a_small_vocabulary_is_kept_to():
    words = Vocabulary(kinds=("circle", "star"), colours=("red", "blue", "white", "black", "green"), textures=("",),
                       scenes=SCENES[:4], relative=False)  # fmt: skip
    for index in range(20):
        for thing in make_scene(0, index, vocabulary=words, **SMALL).objects:
            for (texture, colour, kind), relation, scene in map(parse, thing.candidates):
                assert texture == "" and colour in words.colours and kind in words.kinds and scene in words.scenes
                assert not any(c in relation for c in words.colours)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"width": (10, 96)}, "width"),
        ({"height": (200, 100)}, "height"),
        ({"objects": (0, 3)}, "objects"),
        ({"objects": (3, 10)}, "objects"),
    ],
)
def test_impossible_ranges_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        make_scene(0, 0, **{**SMALL, **options})


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="mauve"):
        Vocabulary(colours=("red", "mauve"))
    with pytest.raises(ValueError, match="three scene swaps"):
        Vocabulary(scenes=SCENES[:3])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    steps = []
    rows = write_scenes(folder, train=12, eval=5, seed=1, progress=lambda *step: steps.append(step), **SMALL)
    return folder, rows, steps


def test_files_have_the_published_schemas(written):
    folder, rows, steps = written
    evaluation, training = pq.read_table(folder / EVAL_FILE), pq.read_table(folder / TRAIN_FILE)
    assert evaluation.column_names == [
        "qry_text", "qry_image_path", "tgt_text", "tgt_image_path", "original_caption", "neg_types", "bbox",
        "segmentation", "category", "image_id", "point",
    ]  # fmt: skip
    assert training.column_names == [
        "qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path", "bbox", "segmentation",
        "category", "image_id", "point",
    ]  # fmt: skip
    assert rows == {"train": len(training), "eval": len(evaluation)}
    assert steps == [(i, 17) for i in range(1, 18)]
    row = evaluation.slice(0, 1).to_pylist()[0]
    assert row["qry_text"] == QUERY_TEXT and row["tgt_image_path"] == [""] * 10
    assert row["tgt_text"][0] == row["original_caption"]
    types = ["gt"] + ["global_context"] * 3 + ["background_relation"] * 3 + ["object_swap"] * 3
    assert row["neg_types"] == types
    assert len(training.slice(0, 1).to_pylist()[0]["neg_text"]) == 9


def test_rows_point_into_their_images(written):
    folder, _, _ = written
    for file in (EVAL_FILE, TRAIN_FILE):
        for row in pq.read_table(folder / file).to_pylist():
            with Image.open(folder / IMAGE_FOLDER / row["qry_image_path"]) as image:
                mask = decode_segmentation(row["segmentation"], image.height, image.width)
            x, y, w, h = row["bbox"]
            assert mask[y : y + h, x : x + w].sum() == mask.sum() > 0
            assert mask[row["point"][1], row["point"][0]]


def test_train_and_eval_share_no_image_and_writing_again_gives_the_same(written, tmp_path):
    folder, _, _ = written
    digests = {
        split: {
            hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / IMAGE_FOLDER / f"scenes_{split}").iterdir()
        }
        for split in ("train", "eval")
    }
    assert len(digests["train"]) == 12 and len(digests["eval"]) == 5 and not digests["train"] & digests["eval"]
    write_scenes(tmp_path, train=3, eval=5, seed=1, **SMALL)
    assert pq.read_table(tmp_path / EVAL_FILE).equals(pq.read_table(folder / EVAL_FILE))
    again = pq.read_table(tmp_path / TRAIN_FILE)
    assert again.equals(pq.read_table(folder / TRAIN_FILE).slice(0, len(again)))


def test_fewer_negatives_keep_every_sort_and_jpeg_works(tmp_path):
    write_scenes(tmp_path, train=2, eval=0, seed=0, negatives=3, image_format="jpg", **SMALL)
    row = pq.read_table(tmp_path / TRAIN_FILE).to_pylist()[0]
    truth, swaps = parse(row["pos_text"]), [parse(text) for text in row["neg_text"]]
    assert [[a != b for a, b in zip(truth, swap, strict=True)].index(True) for swap in swaps] == [2, 1, 0]
    assert Image.open(tmp_path / IMAGE_FOLDER / row["qry_image_path"]).format == "JPEG"
    assert not (tmp_path / EVAL_FILE).exists()


def test_a_broken_off_run_leaves_no_parquet(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    write_scenes(tmp_path, train=1, eval=0, seed=0, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path, train=5, eval=0, seed=0, progress=stop, **SMALL)
    assert not list(tmp_path.glob("*.parquet*"))
