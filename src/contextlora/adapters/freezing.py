"""Which ranks of a prerequisite's slice stay frozen while another task trains: the first ones of an order.

Because every share delta takes the first ranks of the same order, the ranks frozen at a smaller delta are among those
frozen at a larger one, and tasks with different deltas can train together.
"""

import torch
from torch import Tensor

from contextlora.adapters.config import FrozenPolicy


def rank_norms(A: Tensor, B: Tensor) -> Tensor:
    """||B[:, i]|| ||A[i, :]||, the Frobenius norm of what rank i adds to W0: (r, d_in), (d_out, r) -> (r,)."""
    return A.norm(dim=1) * B.norm(dim=0)


def freezing_order(policy: FrozenPolicy, A: Tensor, B: Tensor, generator: torch.Generator) -> list[int]:
    """The ranks 0..r-1 of a slice, first to be frozen first.

    Args:
        policy: "largest" keeps the ranks that carry most, "first" those of lowest index, "random" any.
        A: (r, d_in).
        B: (d_out, r).
        generator: for "random".
    """
    if policy == "random":
        return torch.randperm(len(A), generator=generator).tolist()
    if policy == "first":
        return list(range(len(A)))
    # Stable, as B starts at 0: a slice that has not trained has equal norms everywhere.
    return rank_norms(A, B).argsort(descending=True, stable=True).tolist()
