import pytest

from contextlora.adapters import AdapterConfig
from contextlora.errors import UserError


def test_scale_is_alpha_over_the_reference_rank():
    assert AdapterConfig(alpha=16, r_reference=8).scale == 2.0


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"alpha": 0}, "alpha is a number > 0, got 0"),
        ({"alpha": float("nan")}, "got nan"),
        ({"r_reference": 0}, "whole number >= 1, got 0: set method.rank"),
        ({"dropout": 1.0}, r"in \[0, 1\), got 1.0"),
        ({"frozen_policy": "last"}, "one of largest, first, random, got 'last'"),
    ],
)
def test_refuses_with_rule_value_and_knob(settings, words):
    with pytest.raises(UserError, match=words):
        AdapterConfig(**settings)
