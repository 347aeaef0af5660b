"""What processes send each other: JSON and tensors, the same on the other side, and nothing that could run code."""

import dataclasses

import pytest
import torch
import torch.distributed as dist

from contextlora.gear.execution.process_groups import ProcessGroups, broadcast_tree, gather_trees
from contextlora.trees import from_bytes, to_bytes

SQUARE = torch.arange(9.0).reshape(3, 3)
TREES = {
    "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": SQUARE}}, "betas": (0.9, 0.999), "foreach": None},
    "nested": [(), {}, [], {("a", 1): [{"b": (True, -1, 2**70, 0.1, float("inf"))}]}],
    "names of the form": {"tensor": "0", "dict": [["tensor", "1"]], "tuple": {"tuple": (1,)}},
    "views that share memory": [SQUARE, SQUARE.T, SQUARE[1], SQUARE[:, :1], SQUARE],
    "types": [torch.ones(2, dtype=t) for t in (torch.bfloat16, torch.float16, torch.float64, torch.bool, torch.int64)],
    "empty": [torch.empty(0), torch.empty(2, 0, 3), ""],
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "text": ["\u2028\x00é", "a\ud800"],
    "none": None,
}


def assert_same(found, expected):
    assert type(found) is (torch.Tensor if isinstance(expected, torch.Tensor) else type(expected))
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert torch.equal(found, expected)
        assert not found.requires_grad
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list | tuple):
        for ours, theirs in zip(found, expected, strict=True):
            assert_same(ours, theirs)
    else:
        assert found == expected


@pytest.mark.parametrize("name", TREES)
def test_a_tree_arrives_as_it_was(name):
    assert_same(from_bytes(to_bytes(TREES[name])), TREES[name])


@dataclasses.dataclass
class Foreign:
    """Neither a tensor nor a plain value."""


@pytest.mark.parametrize("tree", [Foreign(), {"a": [Foreign()]}, {Foreign: 1}, b"bytes", {1, 2}, 1j])
def test_anything_else_is_refused_where_it_is_sent(tree):
    with pytest.raises(TypeError, match="only tensors and plain values"):
        to_bytes(tree)


def exchange():
    dist.init_process_group("gloo")
    rank, groups = dist.get_rank(), ProcessGroups()
    tree = {rank: torch.full((rank + 1,), float(rank))}
    found = broadcast_tree(tree, 1, groups), gather_trees(tree)
    dist.destroy_process_group()
    return [{key: value.tolist() for key, value in row.items()} for row in (found[0], *found[1])]


@pytest.mark.processes
def test_all_processes_get_the_trees_of_one_and_of_all(run_processes):
    rows = [{0: [0.0]}, {1: [1.0, 1.0]}, {2: [2.0, 2.0, 2.0]}]
    assert run_processes(3, exchange) == [[rows[1], *rows]] * 3
