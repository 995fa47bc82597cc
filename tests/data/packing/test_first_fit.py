"""First-fit: what is placed fits, whole, and nobody waits for ever."""

import random
from collections import Counter

import pytest

from virtue_jax.batch import RowShape
from virtue_jax.data.packing.first_fit import Place, first_fit, fits_a_row, misfit
from virtue_jax.data.packing.need import Need

SMALL = RowShape(slots=40, examples=4, vision_rows=2, patches=16, images=2, prompts=3, points=4)
LARGE = RowShape(
    slots=80, examples=6, positives=3, vision_rows=2, patches=40, images=3, prompts=4, points=6, masks=True
)
TEXT = RowShape(slots=30, examples=5)
GROUPS = [(LARGE, 3), (TEXT, 4), (SMALL, 3)]


def random_item(rng: random.Random, number: int) -> Need:
    if rng.random() < 0.5:
        return Need(rng.randint(1, 30))
    # Few identities: images are shared between items and elements, sometimes without a prompt.
    keys = rng.sample(range(6), rng.randint(1, 2))
    images = tuple((key, 4 * (1 + key), i == 0 and rng.random() < 0.8) for i, key in enumerate(keys))
    prompts = rng.randint(1, 2) if images[0][2] else 0
    more = {"points": rng.randint(1, 5), "masks": rng.random() < 0.3} if prompts else {}
    return Need(rng.randint(5, 50), images, rng.randint(1, 2), prompts, positives=rng.randint(0, 2), **more)


def random_elements(seed: int) -> list[list[Need]]:
    rng = random.Random(seed)
    drawn = [[random_item(rng, i) for _ in range(rng.randint(1, 4))] for i in range(rng.randint(1, 25))]
    return [items for items in drawn if misfit(items, GROUPS) is None]


def check_row(items: list[Need], shape: RowShape, vision: dict) -> None:
    """Recounts a row from nothing but what was placed there."""
    assert sum(need.slots for need in items) <= shape.slots
    assert sum(need.examples for need in items) <= shape.examples
    assert sum(need.prompts for need in items) <= shape.prompts
    assert all(need.points <= shape.points and need.masks <= shape.masks for need in items)
    assert all(need.positives <= shape.positives for need in items)
    patches = {key: n for need in items for key, n, _ in need.images}
    prompted = {key for need in items for key, _, with_prompt in need.images if with_prompt}
    assert len(prompted) <= shape.images
    assert vision.keys() == patches.keys()
    used = Counter()
    for key, v in vision.items():
        used[v] += patches[key]
    assert all(0 <= v < shape.vision_rows and n <= shape.patches for v, n in used.items())


@pytest.mark.parametrize("seed", range(200))
def test_capacities_hold_and_elements_are_placed_whole(seed):
    elements = random_elements(seed)
    fit = first_fit(elements, GROUPS)
    rows = {(g, r): [] for g, (_, count) in enumerate(GROUPS) for r in range(count)}
    for items, places in zip(elements, fit.places, strict=True):
        if places is not None:
            assert len(places) == len(items)
            for need, place in zip(items, places, strict=True):
                rows[tuple(place)].append(need)
    for (g, r), items in rows.items():
        check_row(items, GROUPS[g][0], fit.vision[g][r])
    assert fit == first_fit(elements, GROUPS)
    assert not elements or fit.places[0] is not None


@pytest.mark.parametrize("seed", range(30))
def test_what_waits_is_placed_in_the_end(seed):
    """Even where new elements come for ever: the oldest is always placed."""
    rng, waiting, ages = random.Random(seed), [], Counter()
    pool = [items for s in range(40) for items in random_elements(s)]
    number = 0
    left = []
    for _ in range(60):
        while len(waiting) < 30:
            waiting.append((number, rng.choice(pool)))
            number += 1
        fit = first_fit([items for _, items in waiting], GROUPS, len(left))
        left = [entry for entry, places in zip(waiting, fit.places, strict=True) if places is None]
        assert len(left) < len(waiting)
        ages.update(entry[0] for entry in left)
        waiting = left.copy()
    assert 0 < max(ages.values()) < 12


def test_images_go_to_the_smallest_bucket_and_text_to_text_rows_first():
    image = Need(10, (("a", 12, True),), prompts=1, points=3)
    large = Need(10, (("b", 24, True),), prompts=1, points=3)
    assert first_fit([[image, Need(5)], [large]], GROUPS).places == [(Place(2, 0), Place(1, 0)), (Place(0, 0),)]
    many = [[Need(25)] for _ in range(5)]
    assert Counter(place[0].group for place in first_fit(many, GROUPS).places) == {1: 4, 2: 1}
    full = [[Need(30, ((i, 16, True),), prompts=1)] for i in range(4)]
    assert [place[0].group for place in first_fit(full, GROUPS).places] == [2, 2, 2, 0]


def test_an_image_that_the_row_has_costs_nothing_again():
    shape = RowShape(slots=100, examples=9, vision_rows=1, patches=16, images=1, prompts=9, points=4)
    one = Need(10, (("a", 16, True),), prompts=1)
    other = Need(10, (("b", 16, True),), prompts=1)
    fit = first_fit([[one], [one], [other], [one]], [(shape, 1)])
    assert [places is not None for places in fit.places] == [True, True, False, True]
    unprompted = Need(10, (("a", 16, False),))
    assert first_fit([[unprompted], [one]], [(shape, 1)]).places[1] is not None
    two = RowShape(slots=100, examples=9, vision_rows=2, patches=16, images=1, prompts=9, points=4)
    fit = first_fit([[unprompted], [one], [other]], [(two, 1)])
    assert [places is not None for places in fit.places] == [True, True, False]


def test_an_element_of_which_one_item_finds_no_room_leaves_its_room_to_others():
    group = [(RowShape(slots=20, examples=4, vision_rows=1, patches=8, images=1, prompts=4), 1), (TEXT, 1)]
    image = Need(12, (("a", 8, True),), prompts=1)
    elements = [[Need(28)], [image, Need(9)], [Need(12, (("b", 8, True),), prompts=1)]]
    fit = first_fit(elements, group)
    assert fit.places[1] is None and fit.vision[0][0] == {}
    again = first_fit([elements[0], elements[2]], group)
    assert again.places[1] == (Place(0, 0),)


@pytest.mark.parametrize(
    ("need", "message"),
    [
        (Need(90), "slots: 90 needed, capacity"),
        (Need(10, examples=7), "examples: 7 needed, capacity"),
        (Need(10, positives=4), "positives: 4 needed, capacity"),
        (Need(10, (("a", 44, True),), prompts=1), "patches: 44 needed, capacity 40"),
        (Need(10, (("a", 4, True),), prompts=5), "prompts: 5 needed, capacity"),
        (Need(10, (("a", 4, True),), prompts=1, points=9), "points: 9 needed, capacity"),
        (Need(10, tuple((i, 40, i == 0) for i in range(3)), prompts=1), "vision_rows: 2 do not hold"),
    ],
)
def test_what_is_too_large_is_told_with_need_and_capacity(need, message):
    assert message in misfit([need], GROUPS) and not fits_a_row(need, GROUPS)


def test_items_that_fit_alone_but_not_together_are_told_too():
    assert misfit([Need(80, (("a", 40, True),), prompts=1)] * 3, GROUPS) is None
    assert "4 items of 320 slots do not fit together into the [3, 4, 3] rows" in misfit(
        [Need(80, (("a", 40, True),), prompts=1)] * 4, GROUPS
    )
    assert "masks: True needed, capacity False" in misfit(
        [Need(9, (("a", 4, True),), prompts=1, masks=True)], GROUPS[1:]
    )
