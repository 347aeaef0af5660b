import pytest
import torch

from contextlora.adapters.freezing import freezing_order, rank_norms

# ||A[i]|| = 5, 1, 2, 0 and ||B[:, i]|| = 1, 2, 3, 9: products 5, 2, 6, 0
A = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
B = torch.tensor([[1.0, 0.0, 3.0, 9.0], [0.0, 2.0, 0.0, 0.0]])


def order(policy, seed=0):
    return freezing_order(policy, A, B, torch.Generator().manual_seed(seed))


def test_rank_norms_are_the_norms_of_the_rank_one_updates():
    assert rank_norms(A, B).tolist() == [5.0, 2.0, 6.0, 0.0]
    for i in range(4):
        assert torch.outer(B[:, i], A[i]).norm() == pytest.approx(rank_norms(A, B)[i].item())


def test_policies():
    assert order("largest") == [2, 0, 1, 3]
    assert order("first") == [0, 1, 2, 3]
    assert sorted(order("random")) == [0, 1, 2, 3]
    assert order("random", 1) == order("random", 1)
    assert len({tuple(order("random", seed)) for seed in range(10)}) > 1


def test_ranks_that_carry_the_same_keep_their_order():
    assert freezing_order("largest", A, torch.zeros_like(B), torch.Generator()) == [0, 1, 2, 3]
