"""Dropout from few random numbers: the distribution of `nn.Dropout`, exact scaling, fixed by the seed."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from contextlora.training.dropout import StepDropout, StepMasks


def dropout(p, rows=1, **masks):
    """One layer's dropout, for inputs of so many rows."""
    rows = range(rows) if isinstance(rows, int) else rows
    masks = {"seed": 0, "rows": rows, "batch_size": len(rows), **masks}
    return StepDropout(p, 0, StepMasks(**masks))


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_place_is_dropped_with_probability_p(p, dtype):
    y = dropout(p, rows=1000)(
        torch.ones(3000, 201, dtype=dtype)
    )  # 201: not a multiple of the four decisions of one draw
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
    x = torch.ones(50, 8, requires_grad=True)
    y = dropout(0.25, rows=50)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # 4/3 where kept, 0 where dropped


def test_seed_step_and_layer_fix_it_whatever_was_drawn_before():
    x = torch.ones(64, 32)
    base = dropout(0.5, rows=64)(x)
    torch.manual_seed(7)
    assert torch.equal(dropout(0.5, rows=64)(x), base)
    others = [dropout(0.5, rows=64, seed=1), dropout(0.5, rows=64, step=1), dropout(0.5, rows=64)]
    others[2].layer = 1
    assert all(not torch.equal(layer(x), base) for layer in others)
    assert not torch.equal(dropout(0.5, rows=64)(torch.ones(64, 33))[:, :32], base)  # another pass of the same layer


def test_evaluation_passes_everything():
    x, layer = torch.randn(64, 32), dropout(0.5, rows=64)
    assert layer.eval()(x) is x
    assert isinstance(layer, nn.Dropout)  # merging tools that look for dropout find it


@pytest.mark.parametrize("cuts", [(0, 8), (0, 3, 8), (0, 1, 5, 8)])
def test_the_mask_does_not_depend_on_who_computes_which_rows(cuts):
    """Expected: the rows of the mask that one process draws for the whole batch."""
    x = torch.ones(8 * 5, 6)  # 8 rows of 5 tokens
    whole = dropout(0.3, rows=8)(x)
    assert 0 < int((whole == 0).sum()) < whole.numel()
    for first, stop in pairwise(cuts):
        part = dropout(0.3, rows=range(first, stop), batch_size=8)(x[5 * first : 5 * stop])
        assert torch.equal(part, whole[5 * first : 5 * stop])
