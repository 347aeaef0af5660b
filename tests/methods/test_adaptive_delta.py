"""What each policy of delta=auto chooses, on gradients and losses written by hand; rank 4, so deltas in quarters."""

import pytest
import torch

from contextlora.errors import ConfigError
from contextlora.graph import TaskGraph
from contextlora.methods import ContextLora, StageView
from contextlora.methods.contextlora import ContextLoraSettings

GRAPH = TaskGraph({"a": [], "b": [], "c": ["a", "b"]})


def refused(*_):
    raise AssertionError("the policy does not need this")


def make(policy, **settings):
    return ContextLora(ContextLoraSettings(rank=4, delta="auto", delta_policy=policy, **settings))


def ask(method, uses=None, tasks=("c",), interval=0, history=(), notes=None, **calls):
    """The prerequisites' deltas of c after the method was asked."""
    plan = method.plan(GRAPH)
    calls = {"validate": refused, "gradient": refused, "importance": refused} | calls
    notes = {} if notes is None else notes
    view = StageView(plan, tasks, interval, uses or plan.uses, history, notes=notes, **calls)
    return {**plan.uses, **method.next_uses(view)}


def deltas(uses):
    return dict(uses["c"].prerequisites)


def test_auto_starts_with_everything_frozen_and_a_number_changes_nothing():
    assert deltas(make("gradient").plan(GRAPH).uses) == {"a": 1.0, "b": 1.0}
    fixed = ContextLora(ContextLoraSettings(delta=0.5))
    assert make("gradient").changes_uses
    assert not fixed.changes_uses
    assert deltas(ask(fixed)) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(
    ("gradient_of_c", "expected"),
    [
        ([1.0, 0.0], 0.0),  # the same direction: cos 1
        ([0.1, 0.0], 0.0),  # a gate near 0 makes it small, which is no reason
        ([3.0, 4.0], 0.5),  # cos 0.6: 0.4 * 4 = 1.6 ranks, 2 of 4
        ([0.0, 2.0], 1.0),  # cos 0
        ([-1.0, 0.1], 1.0),  # conflict
        ([0.0, 0.0], 1.0),  # no direction at all
    ],
)
def test_gradient_opens_by_the_cosine_of_the_two_tasks_gradients(gradient_of_c, expected):
    gradients = {("c", "a"): gradient_of_c, ("a", "a"): [2.0, 0.0], ("c", "b"): [1.0, 0.0], ("b", "b"): [-1.0, 0.0]}
    uses = ask(make("gradient"), gradient=lambda *key: torch.tensor(gradients[key]))
    assert deltas(uses) == {"a": expected, "b": 1.0}
    assert uses["c"].own == ("c",)


def test_validation_opens_while_the_task_improves_and_the_prerequisite_is_unharmed():
    method, notes, history = make("validation"), {}, [{"loss/a": 0.3}]  # a row of the stage before
    losses = {"a": 0.30, "b": 0.10}
    uses = ask(method, notes=notes, history=history, validate=lambda task: (0.9, losses[task]))
    assert deltas(uses) == {"a": 1.0, "b": 1.0}
    found = []
    for loss, of_a in [(1.0, 0.30), (0.8, 0.31), (0.7, 0.33), (0.6, 0.31), (0.6, 0.30), (0.9, 0.30)]:
        losses["a"] = of_a
        history.append({"loss/c": loss})
        interval = len(history) - 1
        uses = ask(method, uses, notes=notes, interval=interval, history=history, validate=lambda t: (0.9, losses[t]))
        found.append((deltas(uses)["a"], deltas(uses)["b"]))
    # c improves, improves, improves (a has risen by 0.03), improves, stays, gets worse
    assert found == [(0.75, 0.75), (0.5, 0.5), (0.75, 0.25), (0.5, 0.0), (0.75, 0.25), (1.0, 0.5)]


def test_validation_keeps_delta_within_0_and_1():
    method, notes = make("validation"), {"loss/a": 0.1, "loss/b": 0.1}
    falling = [{"loss/c": 1.0 - 0.1 * step} for step in range(8)]
    uses = None
    for interval in range(1, 9):
        uses = ask(
            method, uses, interval=interval, history=falling[:interval], notes=notes, validate=lambda _: (1, 0.1)
        )
    assert deltas(uses) == {"a": 0.0, "b": 0.0}
    for interval in range(2, 9):
        history = [{"loss/c": 0.1}] * interval
        uses = ask(method, uses, interval=interval, history=history, notes=notes, validate=lambda _: (1, 0.1))
    assert deltas(uses) == {"a": 1.0, "b": 1.0}


def test_sensitivity_leaves_open_what_matters_little_to_the_prerequisite():
    importance = {
        "a": [[8.0, 0.1, 0.1, 8.0], [8.0, 8.0, 0.1, 0.1]],  # half of all ranks are below half of the mean, 4.05
        "b": [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]],
    }
    calls = {"importance": lambda task, name: torch.tensor(importance[task if task == name else None])}
    uses = ask(make("sensitivity"), **calls)
    assert deltas(uses) == {"a": 0.5, "b": 1.0}
    assert ask(make("sensitivity"), uses, interval=1)["c"] == uses["c"]  # once a stage


def test_an_edge_delta_stays_and_costs_no_gradient():
    method = make("gradient", edge_delta={"a->c": 0.75})
    one = torch.ones(1)
    uses = ask(method, gradient=lambda task, name: one if name == "b" else refused())
    assert deltas(uses) == {"a": 0.75, "b": 0.0}


@pytest.mark.parametrize("delta", [1.5, -0.1, float("nan"), "often", True, None])
def test_a_delta_is_a_share_or_auto(delta):
    with pytest.raises(ConfigError, match=r"^method.delta must be between 0 and 1, or auto: got .*\.$"):
        ContextLoraSettings(delta=delta)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ConfigError, match=r"^method.delta_policy must be one of gradient, validation, .*'magic'$"):
        ContextLoraSettings(delta="auto", delta_policy="magic")
