"""The order of the data: epochs, blocks of one source, weights by pairs."""

from collections import Counter
from itertools import groupby

import pytest

from virtue_jax.data.loading.order import ElementOrder


def refs(order, count):
    return [order[number] for number in range(count)]


def test_every_epoch_holds_every_row_once_in_a_new_order():
    order = [ref.row for ref in refs(ElementOrder([10], seed=1), 40)]
    epochs = [order[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert [ref.row for ref in refs(ElementOrder([10], seed=2), 40)] != order
    assert [ref.row for ref in refs(ElementOrder([10], seed=1, interleave=7), 40)] == order


def test_sources_take_turns_in_blocks_by_weight():
    drawn = refs(ElementOrder([6, 100], seed=0, weights=[1, 3], interleave=5), 200)
    blocks = [drawn[i : i + 5] for i in range(0, 200, 5)]
    assert all(len({ref.source for ref in block}) == 1 for block in blocks)
    turns = [block[0].source for block in blocks]
    assert turns.count(0) == 10 and all(turns[i : i + 4].count(0) == 1 for i in range(0, 40, 4))
    small = [ref.row for ref in drawn if ref.source == 0]
    assert all(sorted(small[i : i + 6]) == list(range(6)) for i in range(0, 48, 6))
    assert sorted([ref.row for ref in drawn if ref.source == 1][:100]) == list(range(100))


def test_order_goes_on_over_the_cycle_of_turns():
    order = ElementOrder([700, 500, 900], seed=3, weights=[2, 1, 5], interleave=3)
    drawn = refs(order, 3 * 4096 + 300)
    for source, length in enumerate((700, 500, 900)):
        rows = [ref.row for ref in drawn if ref.source == source]
        whole = len(rows) // length * length
        assert all(sorted(rows[i : i + length]) == list(range(length)) for i in range(0, whole, length))


def test_weights_and_blocks_count_pairs():
    # Rows of the first source are 4 pairs each.
    order = ElementOrder([500, 500], pairs=[2000, 500], seed=0, weights=[1, 1], interleave=8)
    drawn = [ref.source for ref in refs(order, 1000)]
    assert {len(list(run)) for _, run in groupby(drawn)} == {2, 8}
    counts = Counter(drawn)
    assert 4 * counts[0] == pytest.approx(counts[1], rel=0.01)
    large = ElementOrder([50], pairs=[500], seed=0, interleave=8)
    assert sorted(ref.row for ref in refs(large, 50)) == list(range(50))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": []}, "at least one row"),
        ({"lengths": [3, 0]}, "at least one row"),
        ({"lengths": [3], "interleave": 0}, "interleave 0"),
        ({"lengths": [3], "weights": [0.0]}, "positive number for each of 1 sources"),
        ({"lengths": [3], "weights": [1.0, 2.0]}, "positive number for each of 1 sources"),
    ],
)
def test_impossible_orders_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ElementOrder(seed=0, **options)
