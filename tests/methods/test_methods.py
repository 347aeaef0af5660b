"""Every method as a training plan: who owns which ranks, what is in the forward, and what trains together."""

import pytest

from contextlora.errors import ConfigError
from contextlora.graph import TaskGraph
from contextlora.methods import METHODS, build_method
from contextlora.methods.contextlora import ContextLoraSettings
from contextlora.settings import MethodSettings

GRAPH = TaskGraph({"a": [], "b": [], "c": ["a", "b"], "d": ["c"]})


@pytest.mark.parametrize("name", METHODS)
def test_no_method_has_more_ranks_and_all_train_every_task_once(name):
    plan = METHODS[name](METHODS[name].Settings(name=name, rank=3)).plan(GRAPH)
    assert plan.partition.total_rank <= 12  # what has routers gives up ranks for them
    assert sorted(task for stage in plan.stages for task in stage) == ["a", "b", "c", "d"]
    assert set(plan.uses) == {"a", "b", "c", "d"}


def test_contextlora_trains_generations_with_direct_prerequisites_in_the_forward():
    plan = build_method(ContextLoraSettings(delta=0.5, edge_delta={"b->c": 0.25})).plan(GRAPH)
    assert plan.stages == (("a", "b"), ("c",), ("d",))
    assert plan.uses["c"].own == ("c",)
    assert dict(plan.uses["c"].prerequisites) == {"a": 0.5, "b": 0.25}
    assert dict(plan.uses["d"].prerequisites) == {"c": 0.5}


def test_contextlora_takes_all_ancestors_when_asked():
    plan = build_method(ContextLoraSettings()).plan(GRAPH, "ancestors")
    assert set(plan.uses["d"].prerequisites) == {"a", "b", "c"}


def test_an_edge_delta_must_name_an_edge():
    with pytest.raises(ConfigError, match=r"edge_delta.*'a->d'.*a->c, b->c, c->d"):
        build_method(ContextLoraSettings(edge_delta={"a->d": 0.5})).plan(GRAPH)


def test_joint_trains_all_tasks_at_once_and_sequential_one_after_the_other_on_one_slice():
    joint, sequential = (
        build_method(MethodSettings(name=name, rank=2)).plan(GRAPH) for name in ("joint", "sequential")
    )
    assert joint.stages == (("a", "b", "c", "d"),)
    assert sequential.stages == (("a",), ("b",), ("c",), ("d",))
    for plan in (joint, sequential):
        assert {use.active for use in plan.uses.values()} == {("shared",)}


def test_per_task_shares_nothing():
    plan = build_method(MethodSettings(name="per_task")).plan(GRAPH)
    assert all(use.active == (task,) for task, use in plan.uses.items())


def test_an_unknown_method_is_refused():
    with pytest.raises(ConfigError, match=r"method.name must be one of contextlora.*'magic'"):
        build_method(MethodSettings(name="magic"))


def test_a_method_takes_its_own_settings_only():
    with pytest.raises(ConfigError, match="method joint takes MethodSettings: got ContextLoraSettings"):
        build_method(ContextLoraSettings(name="joint"))
