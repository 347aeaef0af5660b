"""Optimizer and learning-rate schedule of one stage."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import LambdaLR

from contextlora.errors import ConfigError
from contextlora.limits import check_values


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW with linear warm-up and cosine decay to 0 over the stage's budget.

    Attributes:
        learning_rate: peak rate of the ranks a task owns; the method says those of other groups.
        weight_decay: decoupled decay of the ranks; gates and parts have none.
        warmup_share: share of the stage's budget over which the rate rises.
    """

    learning_rate: float = 2e-4
    weight_decay: float = 0.0
    warmup_share: float = 0.05

    def __post_init__(self) -> None:
        check_values(self, "training.")
        if not self.learning_rate > 0:
            raise ConfigError(f"training.learning_rate must be above 0: got {self.learning_rate}. Raise it.")
        if not 0 <= self.warmup_share < 1:
            raise ConfigError(f"training.warmup_share must lie in [0, 1): got {self.warmup_share}. Change it.")


def rate_factor(step: int, num_steps: int, warmup_share: float) -> float:
    """Share of the peak rate at a step: (step + 1) / warm-up steps, then half a cosine down to 0."""
    num_warmup = int(num_steps * warmup_share)
    if step < num_warmup:
        return (step + 1) / num_warmup
    done = (step - num_warmup) / max(1, num_steps - num_warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def build_optimizer(
    groups: Mapping[str, Sequence[torch.nn.Parameter]],
    settings: OptimizerSettings,
    peak_rate: Callable[[str, float], float],
    first_step: int,
    num_steps: int,
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """A new optimizer, without any moment of an earlier stage, and its schedule (to be stepped after each step).

    Args:
        groups: name -> parameters.
        settings: of the optimizer.
        peak_rate: (group, learning rate) -> the group's peak rate.
        first_step: steps of the stage that are done.
        num_steps: of the whole stage.
    """
    parameter_groups = [
        {
            "params": list(parameters),
            "lr": peak_rate(name, settings.learning_rate),
            # A decayed gate would shut, whether or not its slice helps.
            "weight_decay": settings.weight_decay if name in ("own", "open") else 0.0,
        }
        for name, parameters in groups.items()
        if parameters
    ]
    optimizer = torch.optim.AdamW(parameter_groups)
    return optimizer, LambdaLR(optimizer, lambda step: rate_factor(first_step + step, num_steps, settings.warmup_share))


def gradients_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Of the parameters that have one."""
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
