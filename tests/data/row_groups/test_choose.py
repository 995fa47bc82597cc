"""Row groups are chosen so that everything fits, rows are full, and nothing else but the arguments decides."""

import dataclasses

import pytest

from virtue_jax.batch import RowShape
from virtue_jax.config import AdapterConfig, HieraConfig, Sam2Config, TextConfig, VirtueConfig, VisionConfig
from virtue_jax.data.packing.first_fit import misfit
from virtue_jax.data.packing.need import Need
from virtue_jax.data.row_groups.choose import Demand, choose_rows
from virtue_jax.data.row_groups.published import MMEB, SCAR, published_needs
from virtue_jax.data.row_groups.simulate import NeedSource, SampleOrder, simulate

# What lengths depend on: 256 segmentation tokens, 4 to 1,280 vision tokens of 28x28 pixels.
TEXT = TextConfig(100, 16, 16, 1, 2, 1, (2, 1, 1), 1, 2, 3)
VIRTUE = VirtueConfig(
    Sam2Config(HieraConfig(8, 1, (1, 1, 1, 1), ())), VisionConfig(1, 16, 2, 16), TEXT, AdapterConfig()
)


def cost(shape: RowShape) -> float:
    """Like 2B's: tokens, patches with the square of a vision row, SAM runs."""
    return shape.slots + shape.vision_rows * shape.patches * (0.16 + shape.patches / 3e4) + 75 * shape.images


def demand(name: str, **changes) -> Demand:
    values = {"batch_size": 512, "streams": 2, "devices": 4, "largest_patches": 5120, "cost": cost}
    values |= {"interleave": 32, "effort": 0.25, "fit": 0.95}
    return Demand(published_needs(name, VIRTUE, count=300), **(values | changes))


@pytest.fixture(scope="module")
def chosen():
    return {name: choose_rows(demand(name)) for name in ("scar", "mmeb")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scar", "mmeb"])
def test_rows_are_full_and_nearly_all_pairs_are_placed(chosen, name):
    figures = chosen[name].figures
    assert figures.row_efficiency >= 0.90
    assert figures.pairs >= 0.94 * 512
    assert figures.waiting < 0.06 and figures.longest_wait < 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scar", "mmeb"])
def test_everything_fits_and_divides(chosen, name):
    groups = chosen[name].groups
    of_stream = [(shape, rows // 2) for shape, rows in groups]
    assert all(rows % 4 == 0 for _, rows in groups)
    assert all(shape.slots % 128 == 0 and shape.patches % 128 == 0 for shape, _ in groups)
    for source in demand(name).sources:
        assert not any(misfit(element, of_stream) for element in source.elements)
    largest = Need(256 + 1280 + 50, (("image", 5120, True),), prompts=1, points=3, positives=1)
    assert misfit([largest], of_stream) is None, "a larger image than any of the sample"


@pytest.mark.slow
def test_lengths_are_multiples_of_what_is_asked():
    groups = choose_rows(demand("scar", effort=0.1, slot_step=512, patch_step=512)).groups
    assert all(shape.slots % 512 == 0 and shape.patches % 512 == 0 for shape, _ in groups)
    assert max(shape.patches for shape, _ in groups) >= 5120


def test_streams_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match="batch_size 512 does not divide by 3 streams"):
        choose_rows(demand("scar", streams=3))


@pytest.mark.slow
def test_text_alone_needs_text_rows_alone_and_the_choice_is_repeatable():
    texts = [(Need(10 + n % 7, positives=1), Need(5)) for n in range(50)]
    asked = Demand([NeedSource(texts, [1] * len(texts))], 64, 1, 1, 0, cost, effort=0.1)
    chosen = choose_rows(asked)
    assert [shape.patches for shape, _ in chosen.groups] == [0]
    assert chosen.figures.row_efficiency >= 0.90
    assert choose_rows(asked).groups == chosen.groups


@pytest.mark.slow
def test_shared_images_share_rows_and_runs():
    sources = published_needs("scar", VIRTUE, count=100, share_images=4)
    groups = choose_rows(dataclasses.replace(demand("scar", effort=0.1), sources=sources)).groups
    assert sum(rows * shape.images for shape, rows in groups) < 512 / 2, "SAM runs for 512 queries"
    assert all(shape.prompts == 4 * shape.images for shape, _ in groups)


def test_simulated_elements_all_get_their_turn_and_are_counted():
    sources = [NeedSource([(Need(60, positives=1), Need(4))], [1]), NeedSource([(Need(30, positives=1),)], [1])]
    groups = [(RowShape(100, 4), 4)]
    figures = simulate(SampleOrder(sources, 1), groups, batch_size=8, streams=2, steps=50)
    # Each stream draws only one of the two sources: two rows hold two pairs of 64 tokens, or four of 30 and more.
    assert figures.pairs == 2 + 4
    assert figures.row_efficiency == (2 * 64 + 4 * 30) / 400
    assert figures.waiting == pytest.approx((2 + 0) / 8, abs=0.05)


def test_made_up_lengths_are_those_of_the_published_row_counts():
    assert sum(lengths.rows for lengths in SCAR.values()) == 957_714
    assert len(MMEB) == 20
    by_name = dict(zip(MMEB, published_needs("mmeb", VIRTUE, count=50), strict=True))
    document, dialogue = by_name["DocVQA"].elements[0], by_name["VisDial"].elements[0]
    assert document[0].images[0][1] > 4900 and not document[1].images
    assert not dialogue[0].images and dialogue[1].images[0][1] < 2200 and dialogue[1].slots > 256
    coco = published_needs("scar", VIRTUE, count=500)[0].elements
    assert 0.15 < sum(element[0].images[0][1] == 34 * 46 for element in coco) / 500 < 0.45, "640x480 and its portrait"
