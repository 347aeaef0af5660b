from collections import Counter

import pytest

from contextlora.tasks.order import TrainingOrder, by_length, lengths_of
from contextlora.tasks.task import Item


def items_of(lengths):
    return [Item(str(n), str(n), "x" * length, ("a", "b"), 0) for n, length in enumerate(lengths)]


@pytest.fixture
def unlike():
    return items_of([10 + (37 * n) % 500 for n in range(203)])


def padded(order, items, batch_size, num_batches):
    lengths = lengths_of(items)
    return sum(batch_size * lengths[order.batch((0, 0, 0), turn)].max() for turn in range(num_batches))


def test_batches_of_unlike_items_are_narrow(unlike):
    order = TrainingOrder(unlike, 8)
    assert order.groups
    read = sum(lengths_of(unlike)[order.batch((0, 0, 0), turn)].sum() for turn in range(25))
    assert padded(order, unlike, 8, 25) < 1.1 * read


def test_a_round_reads_every_item_once_but_what_fills_no_batch(unlike):
    order = TrainingOrder(unlike, 8)
    left_out = set()
    for round_ in range(4):
        seen = Counter(place for turn in range(25) for place in order.batch((3, 1, 0), 25 * round_ + turn))
        assert max(seen.values()) == 1 and len(seen) == 200
        left_out |= set(range(203)) - set(seen)
    assert len(left_out) > 3


def test_short_items_do_not_come_first(unlike):
    order = TrainingOrder(unlike, 8)
    widths = [lengths_of(unlike)[order.batch((0, 0, 0), turn)].max() for turn in range(16)]
    assert widths != sorted(widths) and len(set(widths)) > 8


@pytest.mark.parametrize("lengths", [[20, 300] * 40, [20] * 80])
def test_a_batch_depends_on_key_and_number_alone(lengths):
    items = items_of(lengths)
    whole = [TrainingOrder(items, 8).batch((0, 1, 2), turn) for turn in range(30)]
    again = TrainingOrder(items, 8)
    assert [again.batch((0, 1, 2), turn) for turn in reversed(range(30))] == whole[::-1]
    assert [again.batch((0, 2, 2), turn) for turn in range(30)] != whole


def test_like_items_keep_the_order_that_a_shuffle_gives():
    order = TrainingOrder(items_of([100, 101] * 30), 8)
    assert not order.groups
    read = [place for turn in range(15) for place in order.batch((0, 0, 0), turn)]
    assert sorted(read[:60]) == sorted(read[60:]) == list(range(60))  # batches reach into the next round


def test_a_batch_may_hold_more_than_all_items():
    assert Counter(TrainingOrder(items_of([10, 500, 20]), 6).batch((0,), 0)) == {0: 2, 1: 2, 2: 2}


def test_evaluation_reads_by_length_where_that_pays(unlike):
    order = by_length(unlike, 8)
    assert sorted(order) == list(range(203))
    assert list(lengths_of(unlike)[order]) == sorted(lengths_of(unlike))
    assert by_length(unlike, 300) == list(range(203))  # one batch is as wide either way
    assert by_length(items_of([100, 101] * 30), 8) == list(range(60))
    assert by_length([], 8) == []
