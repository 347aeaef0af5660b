import itertools
import random
import time

import pytest

from contextlora.graph import GraphError, RankPartition, TaskGraph

IOV = {"route": ["risk", "traffic"], "hazard": [], "risk": ["grip", "hazard"], "grip": [], "traffic": []}


def random_dag(num_tasks, num_edges, seed):
    """A random acyclic declaration in shuffled order: edges go from a lower number to a higher one."""
    rng = random.Random(seed)
    direct = {f"t{i}": [] for i in rng.sample(range(num_tasks), num_tasks)}
    edges = set()
    while len(edges) < num_edges:
        u, v = sorted(rng.sample(range(num_tasks), 2))
        edges.add((u, v))
    for u, v in sorted(edges):
        direct[f"t{v}"].append(f"t{u}")
    return direct


def test_generations_follow_the_equations_and_keep_declaration_order():
    graph = TaskGraph(IOV)
    assert graph.generations == (("hazard", "grip", "traffic"), ("risk",), ("route",))
    assert graph.tasks == ("hazard", "grip", "traffic", "risk", "route")
    assert graph.edges == (("hazard", "risk"), ("grip", "risk"), ("traffic", "route"), ("risk", "route"))


def test_prerequisites_direct_and_ancestors():
    graph = TaskGraph(IOV)
    assert graph.prerequisites("risk") == ("hazard", "grip")
    assert graph.prerequisites("route") == ("traffic", "risk")
    assert graph.prerequisites("route", "ancestors") == ("hazard", "grip", "traffic", "risk")
    assert graph.prerequisites("hazard", "ancestors") == ()


@pytest.mark.parametrize("seed", range(5))
def test_random_graphs_fulfil_the_definitions(seed):
    direct = random_dag(60, 200, seed)
    graph = TaskGraph(direct)
    level = {task: k for k, generation in enumerate(graph.generations) for task in generation}
    for task, needed in direct.items():  # as early as possible: right after the latest of its prerequisites
        assert level[task] == max((level[name] + 1 for name in needed), default=0)
    declared = list(direct)
    assert all(list(g) == sorted(g, key=declared.index) for g in graph.generations)
    assert set(graph.edges) == {(u, v) for v, needed in direct.items() for u in needed} and len(graph.edges) == 200
    ancestors = {}
    for task in graph.tasks:  # prerequisites come before it
        ancestors[task] = set(direct[task]).union(*(ancestors[name] for name in direct[task]))
        assert graph.prerequisites(task, "ancestors") == tuple(t for t in graph.tasks if t in ancestors[task])


def test_accepts_pairs_as_dict_does():
    assert TaskGraph(iter(IOV.items())).generations == TaskGraph(IOV).generations


@pytest.mark.parametrize(
    "declaration, words",
    [
        ({}, "empty"),
        ([("a", []), ("a", [])], "'a' is declared twice"),
        ({"a": ["a"]}, "its own prerequisite"),
        ({"hazard": [], "b": ["hazrad"]}, "'b' needs unknown task 'hazrad'; did you mean hazard"),
        ({"a": [], "b": ["a", "a"]}, "lists prerequisite 'a' twice"),
        ({"a": [], "b": "a"}, r"write \[a\]"),
        ({"a.b": []}, "letters, digits"),
        ({"a/b": []}, "letters, digits"),
        ({1: []}, "letters, digits"),
    ],
)
def test_refuses_with_rule_and_value(declaration, words):
    with pytest.raises(GraphError, match=words):
        TaskGraph(declaration)


def test_names_the_cycle():
    with pytest.raises(GraphError, match="cycle") as caught:
        TaskGraph({"root": [], "a": ["root", "c"], "b": ["a"], "c": ["b"]})
    named = str(caught.value).split(", ")[1].split(":")[0].split(" -> ")
    assert set(named) == {"a", "b", "c"} and named[0] == named[-1] and len(named) == 4
    edges = {("a", "b"), ("b", "c"), ("c", "a")}
    assert set(itertools.pairwise(named)) == edges


def test_unknown_task_or_scope():
    with pytest.raises(GraphError, match="did you mean route"):
        TaskGraph(IOV).prerequisites("rout")
    with pytest.raises(GraphError, match="'direct' or 'ancestors'"):
        TaskGraph(IOV).prerequisites("route", "all")


def test_ten_thousand_tasks_in_under_a_second():
    direct = random_dag(10_000, 50_000, seed=0)
    start = time.process_time()
    graph = TaskGraph(direct)
    partition = RankPartition(dict.fromkeys(graph.tasks, 8))
    ends = [partition.indices(task).stop for task in graph.tasks]
    assert time.process_time() - start < 1
    assert ends[-1] == 80_000 and len(graph.edges) == 50_000
