"""Figures of merit: accuracy and its intervals, transfer between stages, option bias, calibration.

Shapes: N items, K options. Accuracies are shares in [0, 1].
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torchmetrics.functional.classification import multiclass_calibration_error

# 97.5 % quantiles of Student's t for 1..30 degrees of freedom; beyond, the normal one is off by less than 2 %.
T_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
Z_975 = 1.959964


def wilson_interval(accuracy: float, n: int) -> tuple[float, float]:
    """95 % interval of a share seen on n items (Wilson 1927): stays within [0, 1], also for 0 and 1."""
    if n == 0:
        return 0.0, 1.0  # nothing is known
    z2 = Z_975**2
    centre = (accuracy + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_975 / (1 + z2 / n) * math.sqrt(accuracy * (1 - accuracy) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over seeds and its 95 % interval from Student's t; (mean, nan, nan) for a single seed."""
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return mean, math.nan, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    quantile = T_975[n - 2] if n - 1 <= len(T_975) else Z_975
    half = quantile * math.sqrt(variance / n)
    return mean, mean - half, mean + half


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> tuple[float, float, float, int]:
    """Mean difference ours - theirs over the seeds both have, its 95 % interval, and the number of pairs.

    Pairs, because the spread between seeds is larger than the noise of the items.
    """
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return math.nan, math.nan, math.nan, 0
    return *mean_interval([ours[seed] - theirs[seed] for seed in seeds]), len(seeds)


def forgetting(after_stage: Sequence[float | None]) -> float | None:
    """Best accuracy after an earlier stage minus the one after the last stage (Chaudhry et al. 2018).

    Args:
        after_stage: one task's accuracy after each stage, None before it was first trained.
    """
    seen = [value for value in after_stage if value is not None]
    return max(seen[:-1]) - seen[-1] if len(seen) > 1 else None


def backward_transfer(after_stage: Sequence[float | None]) -> float | None:
    """Accuracy after the last stage minus the one after the task's own stage (Lopez-Paz & Ranzato 2017)."""
    seen = [value for value in after_stage if value is not None]
    return seen[-1] - seen[0] if len(seen) > 1 else None


def position_bias(chosen: torch.Tensor, answers: torch.Tensor, num_options: int) -> float:
    """Total variation distance between where the chosen options stand and where the right ones stand.

    0: no position (or letter) is favoured; 1: always one position, never the right one.

    Args:
        chosen, answers: (N,) option positions.
    """
    if len(chosen) == 0:
        return 0.0
    picked = torch.bincount(chosen, minlength=num_options) / len(chosen)
    right = torch.bincount(answers, minlength=num_options) / len(answers)
    return float((picked - right).abs().sum() / 2)


def calibration_error(scores: torch.Tensor, answers: torch.Tensor, num_bins: int = 15) -> float:
    """Expected calibration error of the softmax over the options (Guo et al. 2017).

    Args:
        scores: (N, K) log-likelihoods, -inf where an item has fewer options.
        answers: (N,) positions of the right options.
    """
    if len(answers) == 0:
        return 0.0
    probabilities = scores.float().softmax(dim=-1)  # 0 for the missing options
    return float(multiclass_calibration_error(probabilities, answers, num_classes=scores.shape[1], n_bins=num_bins))
