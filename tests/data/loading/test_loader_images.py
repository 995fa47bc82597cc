"""Steps with images: every kind of prompt, shared images, damaged files, grey levels."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from words import make_encoder

from virtue_jax.batch import NO_TOKEN, QUERY, RowShape
from virtue_jax.config import IMAGENET_MEAN, IMAGENET_STD
from virtue_jax.data.example import Example, InvalidExample, TrainingPair, VisualPrompt
from virtue_jax.data.formats.scar import ScarTraining
from virtue_jax.data.loading.loader import training_loader
from virtue_jax.data.packing.invariants import validate
from virtue_jax.data.pair_source import PairRows
from virtue_jax.data.scenes import write_scenes
from virtue_jax.data.sources.shared_images import FirstRows, SharedImages

IMAGES = RowShape(slots=256, examples=6, vision_rows=1, patches=64, images=2, prompts=4, points=4, masks=True)
GROUPS = [(IMAGES, 6), (RowShape(slots=128, examples=12), 4)]


@pytest.fixture(scope="module")
def encoder(golden):
    made = make_encoder(golden)
    made.config = dataclasses.replace(made.config, min_pixels=56 * 56, max_pixels=56 * 56)
    return made


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, train=6, eval=0, seed=0, width=(96, 96), height=(96, 96), objects=(2, 5))
    return folder


def loader_of(encoder, source, **options):
    options = {"groups": GROUPS, "batch_size": 8, "seed": 0, "negatives": 2, "streams": 2, "bad_rows": 0.9} | options
    return training_loader([source], encoder, **options)


def take(loader, steps):
    try:
        return [next(loader) for _ in range(steps)]
    finally:
        loader.close()


def test_every_kind_of_prompt_is_packed_and_valid(encoder, scenes):
    source = ScarTraining(scenes, prompts={"box": 1, "point": 1, "mask": 1})
    labels, masks = set(), 0
    for step in take(loader_of(encoder, source), 4):
        for (shape, _), batch in zip(GROUPS, step.groups, strict=True):
            validate(batch, shape, encoder.config)
        images = step.groups[0]
        assert step.groups[1].patches is None
        labels |= set(images.prompt_labels.ravel().tolist())
        masks += images.has_mask.sum()
        assert step.report.patches == (int((images.patch_segments > 0).sum()), 0)
        assert step.report.patch_capacity == (6 * 64, 0)
        queries = (images.valid & (images.side == QUERY)).sum()
        prompts = (images.prompt_labels != NO_TOKEN).any(2) | images.has_mask
        assert queries == step.report.pairs == prompts.sum()
    assert {1, 2, 3} <= labels and masks > 0


def test_queries_on_one_image_share_a_row_and_none_is_lost(encoder, scenes):
    scar = ScarTraining(scenes)
    source = SharedImages(scar, 3)
    assert sorted(row for group in source.groups for row in group) == list(range(len(scar)))
    assert source.pairs == len(scar) > len(source)
    assert all(len({pair.query.images for pair in source[i]}) == 1 for i in range(len(source)))
    loader = loader_of(encoder, source, streams=1, batch_size=3)
    seen, reached = [], 0
    while reached < len(source):
        step = next(loader)
        reached = loader.get_state()["streams"]["0"]["drawn"]
        rows = [[o for o in row if "text" not in o] for row in step.report.origins[0]]
        seen += [o for row in rows for o in row]
        images = step.groups[0]
        for r, row in enumerate(rows):
            paths = {scar.pair(int(o.rsplit(" ", 1)[1])).query.images for o in row}
            assert images.patch_segments[r].max() == len(paths)
            assert len(set(images.prompt_image[r][(images.prompt_labels[r] != NO_TOKEN).any(1)].tolist())) == len(paths)
    loader.close()
    left = loader.get_state()["streams"]["0"]["waiting"]
    seen += [scar.origin(row) for e in left for row in source.groups[loader.reader.order[e].row]]
    drawn = [scar.origin(row) for e in range(reached) for row in source.groups[loader.reader.order[e].row]]
    assert sorted(seen) == sorted(drawn) and set(drawn) == {scar.origin(row) for row in range(len(scar))}


def test_queries_on_one_image_that_no_row_holds_go_into_several(encoder, scenes):
    source = SharedImages(ScarTraining(scenes), 9)
    narrow = [(dataclasses.replace(IMAGES, prompts=1), 12), GROUPS[1]]
    steps = take(loader_of(encoder, source, groups=narrow, streams=1, batch_size=9), 3)
    assert not any(step.report.quarantined for step in steps) and sum(step.report.pairs for step in steps) > 9


def test_pairs_that_belong_together_and_exceed_a_step_are_told(encoder, scenes):
    steps = loader_of(encoder, SharedImages(ScarTraining(scenes), 9), streams=2, batch_size=2, bad_rows=0.0)
    with pytest.raises(ValueError, match="pairs that belong together, more than the 1 that a stream has in a step"):
        take(steps, 100)


def test_a_damaged_image_is_replaced_by_the_next_element(encoder, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path, dirs_exist_ok=True)
    whole = ScarTraining(tmp_path)
    damaged = sorted((tmp_path / "images/scenes_train").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:200])
    broken = {row for row in range(len(whole)) if whole.pair(row).query.images[0] == str(damaged)}
    loader = loader_of(encoder, whole, streams=1)
    steps = take(loader, 8)
    found = [entry for step in steps for entry in step.report.quarantined]
    state = loader.get_state()["streams"]["0"]
    expected = [e for e in range(state["drawn"]) if loader.reader.order[e].row in broken]
    assert [entry["element"] for entry in found] == expected and len(expected) == state["bad"] > 0
    for entry in found:
        assert entry["origin"] == whole.origin(loader.reader.order[entry["element"]].row)
        assert str(damaged) in entry["error"] and "truncated" in entry["error"]
    assert all(step.report.pairs + step.report.waiting == 8 for step in steps)
    again = loader_of(encoder, whole, streams=1, prefetch=1)
    for step, repeated in zip(steps, take(again, 8), strict=True):
        assert step.report == repeated.report


def test_of_pairs_that_share_an_image_only_the_bad_ones_are_left_out(encoder, scenes):
    class Spoilt(ScarTraining):
        """Row 1 cannot be read, the box of row 3 is outside its image, the text of row 4 is longer than any row."""

        def pair(self, row):
            pair = super().pair(row)
            if row == 1:
                raise InvalidExample(f"{self.origin(row)}: damaged")
            if row == 3:
                query = dataclasses.replace(pair.query, prompt=VisualPrompt(box=(200, 200, 300, 300)))
                return dataclasses.replace(pair, query=query)
            return dataclasses.replace(pair, positives=Example("x " * 300)) if row == 4 else pair

    rows = Spoilt(scenes)
    source = SharedImages(rows, 3)
    partly = {g for g, group in enumerate(source.groups) if 0 < len({1, 3, 4} & set(group)) < len(group)}
    loader = loader_of(encoder, source, groups=[(IMAGES, 2), GROUPS[1]], streams=1, batch_size=9)
    steps, saved = [], []
    for _ in range(8):
        saved.append(loader.get_state())
        steps.append(next(loader))
    loader.close()
    state = loader.get_state()["streams"]["0"]
    waited = {loader.reader.order[e].row for at in saved for e in at["streams"]["0"]["waiting"]}
    assert waited & partly  # what they lack is not told again after a restart
    bad = [rows.origin(row) for row in (1, 3, 4)]
    drawn = [rows.origin(row) for e in range(state["drawn"]) for row in source.groups[loader.reader.order[e].row]]
    found = [entry for step in steps for entry in step.report.quarantined]
    assert sorted(entry["origin"] for entry in found) == sorted(o for o in drawn if o in bad)
    assert state["bad"] == len(found) >= 3
    for origin, error in zip(bad, ("damaged", "box", "too large to be packed"), strict=True):
        assert all(origin in e["error"] and error in e["error"] for e in found if e["origin"] == origin)
    left = [rows.origin(row) for e in state["waiting"] for row in source.groups[loader.reader.order[e].row]]
    packed = [o for step in steps for row in step.report.origins[0] for o in row if "text" not in o]
    assert sorted(packed + [o for o in left if o not in bad]) == sorted(o for o in drawn if o not in bad)
    for start in range(1, 8):
        loader.set_state(saved[start])
        assert [step.report for step in take(loader, 8 - start)] == [step.report for step in steps[start:]]


def test_of_pairs_that_share_a_damaged_image_each_is_named(encoder, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path, dirs_exist_ok=True)
    rows = ScarTraining(tmp_path)
    source = SharedImages(rows, 3)
    damaged = Path(rows.pair(source.groups[0][0]).query.images[0])
    damaged.write_bytes(damaged.read_bytes()[:200])
    loader = loader_of(encoder, source, streams=1, batch_size=6)
    number = next(e for e in range(99) if loader.reader.order[e].row == 0)
    element = loader.reader[number]
    assert element.number == number and not element.pairs and not element.items and len(source.groups[0]) > 1
    assert [bad.origin for bad in element.bad] == [rows.origin(row) for row in source.groups[0]]
    assert all(str(damaged) in bad.error for bad in element.bad)


def test_grey_levels_travel_where_asked_for(encoder, scenes):
    source = ScarTraining(scenes)
    exact, grey = (take(loader_of(encoder, source, pixels=pixels), 1)[0] for pixels in ("float32", "uint8"))
    validate(grey.groups[0], IMAGES, encoder.config, pixels="uint8")
    for name, array in exact.groups[0]._asdict().items():
        if name not in ("patches", "sam_images"):
            np.testing.assert_array_equal(array, getattr(grey.groups[0], name))
    # What the model makes of grey levels is within two roundings of the exact input.
    given = (exact.groups[0].prompt_labels != NO_TOKEN).any((1, 2))
    levels = grey.groups[0].sam_images[given, 0] / np.float32(255)
    normalised = (levels - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    assert given.any() and np.abs(normalised - exact.groups[0].sam_images[given, 0]).max() < 1.01 / 255 / 0.22


def test_elements_read_for_grey_levels_hold_sams_input_and_not_the_picture(encoder, scenes):
    loaders = {p: loader_of(encoder, ScarTraining(scenes), pixels=p) for p in ("float32", "uint8")}
    exact, grey = (loader.reader[0].items[0][0].images[0] for loader in loaders.values())
    assert exact.sam.shape == (96, 96, 3) and grey.sam.shape == (64, 64, 3) and grey.sam.base is None
    first, second = np.empty((2, 64, 64, 3), np.uint8)
    exact.write_sam(first)
    grey.write_sam(second)
    np.testing.assert_array_equal(first, second)
    with pytest.raises(ValueError, match=r"encoded as uint8.*asked for as float32"):
        grey.write_sam(np.empty((64, 64, 3), np.float32))


def test_an_image_that_is_only_read_takes_no_sam_run(encoder, png, noise):
    class Compared(PairRows):
        def __len__(self):
            return 4

        def origin(self, row):
            return f"row {row}"

        def pair(self, row):
            return TrainingPair(Example(f"both {row}", (png(noise), png(noise[:, :40]))), Example(f"yes {row}"))

    shape = dataclasses.replace(IMAGES, images=1, prompts=1, points=10)
    step = take(loader_of(encoder, Compared(), groups=[(shape, 4), GROUPS[1]], batch_size=4), 1)[0]
    batch = step.groups[0]
    assert step.report.pairs == 4 and batch.sam_images.shape[1] == 1
    assert batch.patch_segments.max(axis=(1, 2)).tolist() == [2] * 4


def test_the_first_rows_of_a_source_are_the_source(encoder, scenes):
    scar = ScarTraining(scenes)
    first = FirstRows(scar, 3)
    assert len(first) == 3 and first.origin(2) == scar.origin(2) and first[2] == scar[2]
    with pytest.raises(IndexError, match="row 3 of 3"):
        first[3]
    assert len(FirstRows(scar, 10**6)) == len(scar)
    groups = SharedImages(scar, 2, limit=3).groups
    assert sorted(row for group in groups for row in group) == [0, 1, 2]
