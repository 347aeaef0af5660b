"""Version numbers of the values: equal numbers mean equal values, and a number changes with its owner's values only."""

import pytest
import torch

from contextlora.graph import SliceUse
from contextlora.methods.routing import add_routers

TASKS = "abxcd"


@pytest.fixture
def adapted(adapt):
    return adapt(gated=True)


@pytest.fixture
def versions(plan):
    """adapted -> task -> version of all that its use computes with."""
    return lambda adapted: {task: adapted.state.version(plan.uses[task], task) for task in TASKS}


def changed(before, after):
    return {task for task in before if before[task] != after[task]}


def test_an_optimizer_step_changes_the_versions_of_what_trains(adapted, plan, versions):
    before = versions(adapted)
    adapted.begin_stage({"c": plan.uses["c"]})  # which trains half of a, none of b
    assert adapted.trained_owners == {"c", "a", "->c"}
    assert versions(adapted) == before
    adapted.mark_trained()
    assert changed(before, versions(adapted)) == {"c", "a", "d"}  # d needs a
    step = versions(adapted)
    adapted.mark_trained()
    assert changed(step, versions(adapted)) == {"c", "a", "d"}
    adapted.end_stage()
    adapted.mark_trained()
    assert versions(adapted)["b"] == before["b"]


def test_gates_alone_are_a_change_of_their_task(adapted, versions):
    before = versions(adapted)
    adapted.state.write({n: v + 1 for n, v in adapted.state.read({"->d"}).items()})
    assert changed(before, versions(adapted)) == {"d"}


def test_loading_changes_the_versions_of_what_differs_only(adapted, versions):
    before, state = versions(adapted), adapted.state.read()
    adapted.state.write(state)
    assert versions(adapted) == before
    name = "model.layers.1.mlp.up_proj.lora_B.b"
    adapted.state.write(state | {name: state[name] * 2})
    assert changed(before, versions(adapted)) == {"b", "c"}


@pytest.mark.parametrize("in_stage", [False, True])
def test_replaced_gives_values_and_versions_back(in_stage, adapted, plan, versions):
    adapted.state.touch({"b"})
    if in_stage:
        adapted.begin_stage({"c": plan.uses["c"]})
    before, state = versions(adapted), adapted.state.read()
    other = {name: values + 1 for name, values in adapted.state.read({"a", "->c"}).items()}
    with pytest.raises(KeyError), adapted.state.replaced(other):
        assert changed(before, versions(adapted)) == {"a", "c", "d"}
        assert all(torch.equal(adapted.state.read()[name], values) for name, values in other.items())
        raise KeyError
    assert versions(adapted) == before
    assert all(torch.equal(adapted.state.read()[name], values) for name, values in state.items())


def test_parts_train_with_every_task_and_are_read_and_written_like_slices(adapted, plan, versions):
    add_routers(adapted)
    before = versions(adapted)
    adapted.begin_stage({"b": plan.uses["b"]})
    assert adapted.trained_owners == {"b", "+router"}
    adapted.mark_trained()
    assert changed(before, versions(adapted)) == set(TASKS)
    state = adapted.state.read({"+router"})
    assert len(state) == 14 and all(".lora_router.gate.weight" in name for name in state)
    adapted.state.write({name: values + 1 for name, values in state.items()})
    assert all(parameter.eq(1).all() for parameter in adapted.parts[0].parameters())


def test_changed_names_every_owner_that_is_not_as_at_the_start(adapt):
    adapted = adapt(random_values=False)
    assert adapted.state.changed == set()
    adapted.begin_stage({"b": SliceUse(("b",))})
    adapted.mark_trained()
    adapted.end_stage()
    assert adapted.state.changed == {"b"}
