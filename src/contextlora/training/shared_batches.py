"""Processes that share every batch: each has the gradients of its own rows, and all take the sum.

Lightning's `ddp` wraps a model once and knows the parameters that it has then, but every stage makes new ones, of which
a batch reaches those of its own task only. So its wrapper is left out, and one all-reduce a step does its work.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ParallelStrategy, Strategy, XLAStrategy
from torch import Tensor

from contextlora.errors import ConfigError


def leave_unwrapped(strategy: Strategy) -> None:
    """Keeps a strategy of several devices from wrapping the model; nothing is to be done for one.

    Raises:
        ConfigError: it does more than summing gradients.
    """
    if not isinstance(strategy, ParallelStrategy):
        return
    if not isinstance(strategy, DDPStrategy) or isinstance(strategy, DeepSpeedStrategy | XLAStrategy):
        raise ConfigError(
            f"stages train on several devices by strategy ddp: got {type(strategy).__name__}, which spreads a model's "
            "parameters once, while every stage makes new ones; use ddp"
        )
    strategy.configure_ddp = lambda: None


def sum_over_processes(tensors: Sequence[Tensor], group: Any = None) -> None:
    """Sums tensors in place over processes that have them alike; None is the group of all."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])  # one collective: each pays the latency anew
    dist.all_reduce(flat, group=group)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def summed_rows(rows: Mapping[str, Sequence[float]], device: torch.device) -> dict[str, list[float]]:
    """Name -> numbers, summed in float64 over all processes, on each of them."""
    sums = {name: torch.tensor(row, dtype=torch.float64, device=device) for name, row in rows.items()}
    sum_over_processes(list(sums.values()))
    return {name: row.tolist() for name, row in sums.items()}
