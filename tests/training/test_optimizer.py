"""Learning rates of the groups, and their course over a stage."""

import math

import pytest
import torch

from contextlora.errors import ConfigError
from contextlora.methods.contextlora import ContextLora, ContextLoraSettings
from contextlora.training.optimizer import OptimizerSettings, build_optimizer, rate_factor


def test_groups_have_their_own_rates_and_gates_no_decay():
    groups = {name: [torch.nn.Parameter(torch.ones(1))] for name in ("own", "open", "gate")}
    method = ContextLora(ContextLoraSettings(open_learning_rate_scale=0.1, gate_learning_rate=5e-2))
    optimizer, _ = build_optimizer(groups, OptimizerSettings(2e-3, weight_decay=0.3), method.peak_rate, 0, 10)
    rates = [group["initial_lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([2e-3, 2e-4, 5e-2])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.3, 0.0]


def test_the_rate_rises_over_the_warm_up_and_falls_along_a_cosine():
    factors = [rate_factor(step, num_steps=12, warmup_share=0.2) for step in range(12)]
    assert factors[:2] == [0.5, 1.0]
    # 10 steps are left after the warm-up of int(12 * 0.2) = 2
    expected = [0.5 * (1 + math.cos(math.pi * k / 10)) for k in range(10)]
    assert factors[2:] == pytest.approx(expected)


def test_the_schedule_is_applied_to_every_group():
    groups = {"own": [torch.nn.Parameter(torch.ones(1))], "open": [torch.nn.Parameter(torch.ones(1))]}
    settings, peak_rate = OptimizerSettings(1.0, warmup_share=0.5), ContextLora(ContextLoraSettings()).peak_rate
    expected = [0.5, 0.05, 1.0, 0.1, 1.0, 0.1, 0.5, 0.05]
    for first_step in (0, 2):  # one that is made in mid-stage goes on along the same course
        optimizer, rates = build_optimizer(groups, settings, peak_rate, first_step, 4)
        seen = []
        for _ in range(4 - first_step):
            seen += [group["lr"] for group in optimizer.param_groups]
            optimizer.step()
            rates.step()
        assert seen == pytest.approx(expected[2 * first_step :])


@pytest.mark.parametrize("settings", [{"learning_rate": 0.0}, {"learning_rate": 1.0, "warmup_share": 1.0}])
def test_rates_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=f"training.{list(settings)[-1]}"):
        OptimizerSettings(**settings)
