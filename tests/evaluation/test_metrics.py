"""Figures of merit against written-out sums, numerical integration and brute force."""

import math

import pytest
import torch

from contextlora.evaluation.metrics import (
    T_975,
    backward_transfer,
    calibration_error,
    forgetting,
    mean_interval,
    paired_difference,
    position_bias,
    wilson_interval,
)


@pytest.mark.parametrize(("share", "n"), [(0.0, 10), (0.3, 10), (0.93, 500), (1.0, 20)])
def test_wilson_bounds_solve_the_score_test(share, n):
    # A bound p is where (share - p)^2 = z^2 p (1 - p) / n.
    for bound in wilson_interval(share, n):
        assert (share - bound) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / n, abs=1e-9)
    low, high = wilson_interval(share, n)
    assert 0 <= low <= share <= high <= 1


def test_the_t_quantiles_cut_off_one_fortieth():
    for degrees, quantile in enumerate(T_975, start=1):
        constant = math.gamma((degrees + 1) / 2) / math.sqrt(degrees * math.pi) / math.gamma(degrees / 2)
        # The mass between 0 and the quantile, by the trapezoid rule, is 0.475.
        x = torch.linspace(0, quantile, 20_001, dtype=torch.float64)
        density = constant * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)
        assert float(torch.trapezoid(density, x)) == pytest.approx(0.475, abs=1e-5)


def test_mean_interval_is_student_t():
    # mean 2, standard deviation 1, three values: half width 4.3027 / sqrt(3)
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2.0, 2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)))
    mean, low, high = mean_interval([0.5])
    assert mean == 0.5
    assert math.isnan(low)
    assert math.isnan(high)


def test_differences_are_paired_by_seed():
    ours, theirs = {0: 0.9, 1: 0.8, 2: 0.7}, {1: 0.7, 2: 0.6, 3: 0.1}
    mean, low, high, num_pairs = paired_difference(ours, theirs)
    assert (mean, num_pairs) == (pytest.approx(0.1), 2)
    assert (low, high) == pytest.approx((0.1, 0.1))
    assert paired_difference({0: 1.0}, {1: 1.0})[3] == 0


def test_forgetting_and_backward_transfer():
    after_stage = [None, 0.6, 0.8, 0.7]
    assert forgetting(after_stage) == pytest.approx(0.1)  # best before the end 0.8, in the end 0.7
    assert backward_transfer(after_stage) == pytest.approx(0.1)  # 0.7 - 0.6
    assert forgetting([None, 0.5]) is None
    assert backward_transfer([None, 0.5]) is None


def test_position_bias_is_half_the_sum_of_differences():
    chosen, answers = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2, 3])
    # shares chosen 3/4, 1/4, 0, 0 against 1/4 each: (1/2 + 0 + 1/4 + 1/4) / 2
    assert position_bias(chosen, answers, 4) == pytest.approx(0.5)
    assert position_bias(answers, answers, 4) == 0
    assert position_bias(torch.tensor([]), torch.tensor([]), 4) == 0


def test_calibration_error_weighs_the_gaps_of_the_bins():
    # Two items at confidence 0.8 with one right, one at 0.6 right; a missing option has no probability.
    probabilities = torch.tensor([[0.8, 0.2, 0.0], [0.8, 0.2, 0.0], [0.4, 0.6, 0.0]])
    answers = torch.tensor([0, 1, 1])
    expected = (2 * abs(0.8 - 0.5) + abs(0.6 - 1.0)) / 3
    assert calibration_error(probabilities.log(), answers) == pytest.approx(expected)
