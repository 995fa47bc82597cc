"""Lengths measured without decoding are those of the encoded examples; packing simulated on them is the loader's."""

import numpy as np
import pytest

from virtue_jax.batch import RowShape
from virtue_jax.data.example import Example, InvalidExample, TrainingPair, VisualPrompt
from virtue_jax.data.loading.loader import training_loader
from virtue_jax.data.packing.need import need_of
from virtue_jax.data.pair_source import PairRows
from virtue_jax.data.row_groups.measure import LengthMeasure, measured_needs
from virtue_jax.data.row_groups.simulate import NeedSource, SampleOrder, simulate


@pytest.fixture
def measure(small_sam_encoder):
    return LengthMeasure(small_sam_encoder.config, small_sam_encoder.tokenizer, hard_negatives=1)


@pytest.fixture(scope="module")
def pictures(png):
    """PNG bytes of several sizes, one of them with a side under 28 pixels, one beyond the most pixels."""
    rng = np.random.default_rng(1)
    return [png(rng.integers(0, 256, (*size, 3), np.uint8)) for size in ((60, 90), (20, 70), (200, 120), (1400, 900))]


def examples(pictures):
    mask = np.zeros((60, 90), bool)
    mask[3:9, 4:9] = True
    return [
        Example("a text alone"),
        Example("what is it?", (pictures[0],)),
        Example("what is it?", (pictures[0],), VisualPrompt(box=(1.5, 2, 30, 40))),
        Example("", (pictures[1],), VisualPrompt(points=((1, 2, 1), (3, 4, 0)))),
        Example("masked", (pictures[0],), VisualPrompt(mask=mask)),
        Example("", (pictures[3], pictures[2])),
        Example("<|image_pad|> and again <|image_pad|>", (pictures[2], pictures[2])),
    ]


def test_measured_needs_are_those_of_encoded_examples(measure, small_sam_encoder, pictures):
    for example in examples(pictures):
        encoded = small_sam_encoder.encode(example)
        assert measure.example(example) == need_of([encoded]), example.text


def test_queries_on_one_image_are_one_item(measure, pictures):
    target = Example("an answer")
    pairs = [
        TrainingPair(Example("one", (pictures[0],)), (target, Example("another answer")), (target, target)),
        TrainingPair(Example("two", (pictures[0],), VisualPrompt(box=(1, 2, 3, 4))), target),
        TrainingPair(Example("text"), target),
    ]
    together, alone, *targets = measure.element(pairs)
    apart = [measure.example(pair.query) for pair in pairs]
    assert together.slots == apart[0].slots + apart[1].slots
    assert (together.examples, together.prompts, together.points, together.positives) == (2, 2, 10, 2)
    assert together.images == apart[0].images
    assert alone == apart[2]._replace(positives=1)
    assert len(targets) == 2 + 1 + 1 + 1, "positives, and one of the hard negatives"


class Rows(PairRows):
    """Pairs with and without an image; rows whose number is in `broken` cannot be read."""

    def __init__(self, pictures, broken=()):
        self.pictures, self.broken = pictures, set(broken)

    def __len__(self):
        return 40

    def origin(self, row):
        return f"row {row}"

    def pair(self, row):
        if row in self.broken:
            raise InvalidExample(f"row {row}: damaged") if row % 2 else KeyError("column")
        images = (self.pictures[row % 3],) if row % 4 else ()
        return TrainingPair(Example(f"query {row}" + " long" * (row % 5), images), Example(f"answer {row % 7}"))


def test_simulated_steps_are_the_loaders(measure, small_sam_encoder, pictures):
    rows = Rows(pictures)
    source = NeedSource([measure.element(rows[row]) for row in range(len(rows))], [1] * len(rows))
    images = {"vision_rows": 2, "patches": 128, "images": 2, "prompts": 2, "points": 10}
    groups = [(RowShape(slots=200, examples=4, **images), 4), (RowShape(slots=32, examples=4), 2)]
    steps, options = 6, {"batch_size": 16, "streams": 2}
    loader = training_loader([rows], small_sam_encoder, groups=groups, seed=0, interleave=1, **options)
    reports = [next(loader).report for _ in range(steps)]
    loader.close()
    figures = simulate(SampleOrder([source], 1), groups, steps=steps, **options)
    assert figures.pairs == np.mean([report.pairs for report in reports])
    assert [group.tokens for group in figures.groups] == np.sum([report.tokens for report in reports], 0).tolist()
    assert [group.patches for group in figures.groups] == np.sum([report.patches for report in reports], 0).tolist()
    assert any(report.waiting for report in reports), "or waiting was not simulated"


def test_bad_rows_are_passed_over_and_too_many_are_an_error(measure, pictures):
    needs = measured_needs(Rows(pictures, broken=range(5)), measure, count=40, weight=2.0)
    assert (len(needs.elements), len(needs.pairs), needs.weight) == (35, 35, 2.0)
    assert not any(len(element) != 2 for element in needs.elements)
    with pytest.raises(InvalidExample, match=r"40 of 40 sampled rows cannot be read; row .*: (damaged|KeyError)"):
        measured_needs(Rows(pictures, broken=range(40)), measure, count=40)
