import pytest

from contextlora.graph import GraphError, RankPartition, num_frozen


def test_slices_tile_the_ranks_in_order():
    partition = RankPartition({"a": 4, "b": 2, "c": 3})
    assert partition.total_rank == 9
    assert [partition.indices(name) for name in "abc"] == [range(4), range(4, 6), range(6, 9)]


@pytest.mark.parametrize(
    "rank, delta, expected",
    # halves go up, always: Python's round would give 0 for .5 and 2 for 2.5
    [(4, 0, 0), (4, 0.25, 1), (4, 0.5, 2), (4, 0.75, 3), (4, 1, 4), (1, 0.5, 1), (3, 0.5, 2), (5, 0.5, 3), (4, 0.1, 0)],
)
def test_num_frozen_is_the_frozen_share_with_halves_up(rank, delta, expected):
    assert num_frozen(rank, delta) == expected


@pytest.mark.parametrize("delta", [-0.01, 1.01, float("nan")])
def test_delta_outside_the_unit_interval(delta):
    with pytest.raises(GraphError, match=r"in \[0, 1\], got"):
        num_frozen(4, delta)


@pytest.mark.parametrize("rank", [0, -1, 2.0, True, "8"])
def test_rank_must_be_a_whole_number(rank):
    with pytest.raises(GraphError, match="whole number >= 1, got"):
        RankPartition({"a": rank})


def test_empty_partition_and_unknown_slice():
    with pytest.raises(GraphError, match="at least one slice"):
        RankPartition({})
    with pytest.raises(GraphError, match="unknown slice 'b': the slices are a"):
        RankPartition({"a": 1}).indices("b")
