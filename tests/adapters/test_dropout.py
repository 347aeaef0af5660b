"""Dropout from few random numbers: the distribution of `nn.Dropout`, exact scaling, fixed by the seed."""

import pytest
import torch
from torch import nn

from contextlora.adapters.dropout import Dropout


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
