"""Dropout from few random numbers: the distribution of `nn.Dropout`, exact scaling, fixed by the seed."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from contextlora.adapters.dropout import Dropout, Shard
from contextlora.adapters.slices import ActiveUse


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_place_is_dropped_with_probability_p(p, dtype):
    torch.manual_seed(0)
    y = Dropout(p)(torch.ones(1000, 3, 201, dtype=dtype))  # 201: not a multiple of the four decisions of one draw
    assert torch.equal(y.unique(), torch.tensor([0.0, 1.0], dtype=dtype) / (1 - p))
    rate = (y == 0).float()
    spread = (p * (1 - p)) ** 0.5
    assert abs(rate.mean() - p) < 4 * spread / 603_000**0.5
    # Neighbouring decisions share a draw but not their outcome.
    centred = rate.flatten() - p
    for distance in (1, 2, 3, 4):
        correlation = (centred[:-distance] * centred[distance:]).mean() / spread**2
        assert abs(correlation) < 4 / 603_000**0.5


def test_the_gradient_passes_where_the_input_did():
    torch.manual_seed(0)
    x = torch.ones(50, 8, requires_grad=True)
    y = Dropout(0.25)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # 4/3 where kept, 0 where dropped


def test_the_seed_fixes_it_and_evaluation_passes_everything():
    x, layer = torch.randn(64, 32), Dropout(0.5)
    outcomes = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outcomes.append(layer(x))
    assert torch.equal(outcomes[0], outcomes[1]) and not torch.equal(outcomes[0], outcomes[2])
    assert layer.eval()(x) is x or torch.equal(layer(x), x)
    assert isinstance(layer, nn.Dropout)  # merging tools that look for dropout find it


@pytest.mark.parametrize("cuts", [(0, 8), (0, 3, 8), (0, 1, 5, 8)])
def test_the_mask_does_not_depend_on_who_computes_which_rows(cuts):
    """Expected: the rows of the mask that one device draws for the whole batch, from the same seed."""
    x = torch.ones(8 * 5, 6)  # 8 rows of 5 tokens
    torch.manual_seed(3)
    whole = Dropout(0.3)(x)
    holder = ActiveUse()
    for first, stop in pairwise(cuts):
        holder.shard = Shard(first, stop - first, 8)
        torch.manual_seed(3)
        assert torch.equal(Dropout(0.3, holder)(x[5 * first : 5 * stop]), whole[5 * first : 5 * stop])
