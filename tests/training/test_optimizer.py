"""Learning rates of the groups, and their course over a stage."""

import math

import pytest
import torch

from contextlora.errors import ConfigError
from contextlora.methods.contextlora import ContextLora, ContextLoraSettings
from contextlora.training.optimizer import OptimizerSettings, build_optimizer, rate_factor


def test_groups_have_their_own_rates_and_only_ranks_decay():
    groups = {name: [torch.nn.Parameter(torch.ones(1))] for name in ("own", "open", "gate", "router")}
    method = ContextLora(ContextLoraSettings(open_learning_rate_scale=0.1, gate_learning_rate=5e-2))
    settings = OptimizerSettings(2e-3, weight_decay=0.3)
    optimizer, _ = build_optimizer(groups, settings, method.peak_rate, first_step=0, num_steps=10)
    rates = [group["initial_lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([2e-3, 2e-4, 5e-2, 2e-3])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.3, 0.0, 0.0]


def test_the_rate_rises_over_the_warm_up_and_falls_along_a_cosine():
    factors = [rate_factor(step, num_steps=12, warmup_share=0.2) for step in range(12)]
    assert factors[:2] == [0.5, 1.0]
    # 10 steps are left after the warm-up of int(12 * 0.2) = 2
    expected = [0.5 * (1 + math.cos(math.pi * k / 10)) for k in range(10)]
    assert factors[2:] == pytest.approx(expected)


def test_the_schedule_is_applied_to_every_group():
    groups = {"own": [torch.nn.Parameter(torch.ones(1))], "open": [torch.nn.Parameter(torch.ones(1))]}
    peaks, settings = {"own": 1.0, "open": 0.5}, OptimizerSettings(2.0, warmup_share=0.5)
    optimizer, rates = build_optimizer(groups, settings, lambda name, rate: rate / 2 * peaks[name], 0, num_steps=4)
    seen = []
    for _ in range(4):
        seen += [group["lr"] for group in optimizer.param_groups]
        optimizer.step()
        rates.step()
    assert seen == pytest.approx([0.5, 0.25, 1.0, 0.5, 1.0, 0.5, 0.5, 0.25])


def test_a_new_optimizer_in_mid_stage_goes_on_along_the_schedule():
    seen = []
    for first_step in (0, 3):
        groups = {"own": [torch.nn.Parameter(torch.ones(1))]}
        optimizer, rates = build_optimizer(groups, OptimizerSettings(1.0), lambda _, rate: rate, first_step, 6)
        for _ in range(first_step, 6):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            rates.step()
    assert seen[6:] == seen[3:6]


@pytest.mark.parametrize("settings", [{"learning_rate": 0.0}, {"learning_rate": 1.0, "warmup_share": 1.0}])
def test_rates_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=f"training.{list(settings)[-1]}"):
        OptimizerSettings(**settings)
