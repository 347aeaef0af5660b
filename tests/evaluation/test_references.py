"""References on items whose statistics are written out."""

from pathlib import Path

import pytest

from contextlora.evaluation.references import rule_accuracy, symbolic_accuracy
from contextlora.graph import TaskGraph
from contextlora.tasks.task import Item, Task
from contextlora.tasks.taskset import TaskSet


def item(number, task, answer, options, **prerequisites):
    options = tuple(options)
    right = options.index(answer)
    return Item(f"{task}{number}", f"s{number}", f"{task} ?", options, right, prerequisites=prerequisites)


@pytest.fixture
def taskset():
    """u is a root; v = "x" for u = low, mostly "y" for u = high; w repeats v."""
    tasks = {
        "u": Task("u", (), 2),
        "v": Task("v", ("u",), 2),
        "w": Task("w", ("v",), 2),
    }
    rows = [("low", "x"), ("low", "x"), ("low", "x"), ("high", "y"), ("high", "y"), ("high", "x")]
    train = {
        "u": [item(k, "u", u, ("low", "high")) for k, (u, _) in enumerate(rows)],
        "v": [item(k, "v", v, ("x", "y"), u=u) for k, (u, v) in enumerate(rows)],
        "w": [item(k, "w", v, ("x", "y"), u=u, v=v) for k, (u, v) in enumerate(rows)],
    }
    test = {
        "u": [item(9, "u", "high", ("low", "high")), item(10, "u", "low", ("low", "high"))],
        "v": [item(9, "v", "y", ("y", "x"), u="high"), item(10, "v", "x", ("y", "x"), u="low")],
        "w": [item(9, "w", "y", ("y", "x"), u="high", v="y"), item(10, "w", "x", ("y", "x"), u="low", v="x")],
    }
    splits = {(task, "train"): tuple(items) for task, items in train.items()}
    splits |= {(task, "test"): tuple(items) for task, items in test.items()}
    return TaskSet("small", Path(), tasks, TaskGraph({"u": (), "v": ("u",), "w": ("v",)}), "", splits)


def test_majority_and_one_prerequisite_count_in_the_train_split(taskset):
    items = taskset.items("v", "test")
    assert rule_accuracy(taskset, "v", (), items) == 0.5  # x, four times out of six
    assert rule_accuracy(taskset, "v", ("u",), items) == 1.0


def test_the_majority_is_taken_among_the_item_s_options(taskset):
    only_y = [item(11, "v", "y", ("y", "z"), u="low")]
    assert rule_accuracy(taskset, "v", (), only_y) == 1.0


def test_symbolic_composition_chains_the_rules_from_predicted_roots(taskset):
    items = taskset.items("w", "test")
    assert symbolic_accuracy(taskset, "w", items, {"u": ["high", "low"]}) == 1.0
    # one root wrong: u = low gives v = x gives w = x, where y is right
    assert symbolic_accuracy(taskset, "w", items, {"u": ["low", "low"]}) == 0.5
    # a root without an answer: the most frequent word
    assert symbolic_accuracy(taskset, "w", items, {"u": [None, None]}) == 0.5
