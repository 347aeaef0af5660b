"""The probes on sets whose weakness is known, and on the shipped one, which has none."""

from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from contextlora.tasks.checks import EXPLAINED, check_table, check_taskset, unprobed
from contextlora.tasks.task import SPLITS, Item, Task
from contextlora.tasks.taskset import TaskSet, write_taskset
from contextlora.tasks.tasksets import resolve_taskset

WORDS = ("x", "y", "z", "w")


def verdicts(checks, task):
    return {check.probe: check.ok for check in checks if check.task == task}


@pytest.fixture(scope="module")
def iov(tmp_path_factory):
    return resolve_taskset("iov", tmp_path_factory.mktemp("data"))


@pytest.fixture
def weaken(tmp_path):
    """(change of an item of task `child`) -> checks of a two-task set that is sound without the change."""

    def make(change=lambda item: item, copies=False):
        rng = np.random.default_rng(0)
        items = {("root", split): [] for split in SPLITS} | {("child", split): [] for split in SPLITS}
        for split in SPLITS:
            for index in range(300):
                code, secret = rng.integers(4, size=2)
                options = tuple(str(word) for word in rng.permutation(WORDS))
                root = WORDS[secret]
                # The root is secret - (a, b) tell it together - and the child shifts it by the code.
                child = WORDS[(secret + code) % 4]
                number = index if copies else f"{split} {index}"
                fields = {"a": str((secret + 2) % 4), "code": str(code)}
                shared = {"id": str(index), "scene": f"{split}{index}", "question": f"{number} ?", "options": options}
                items["root", split].append(Item(**shared, answer=options.index(root), fields=fields))
                asked = Item(**shared, answer=options.index(child), prerequisites={"root": root}, fields=fields)
                items["child", split].append(change(asked))
        write_taskset(tmp_path, "weak", [Task("root", (), 4), Task("child", ("root",), 4)], items)
        return check_taskset(TaskSet.load(tmp_path))

    return make


def to_front(item: Item) -> Item:
    """Puts the right option first."""
    others = [word for word in item.options if word != item.answer_word]
    return replace(item, options=(item.answer_word, *others), answer=0)


def always_x(item: Item) -> Item:
    """Makes x right whenever its scene is even."""
    return replace(item, answer=item.options.index("x")) if int(item.id) % 2 else item


def test_iov_has_no_shortcut_and_needs_its_graph(iov):
    checks = check_taskset(iov)
    assert [check for check in checks if not check.ok] == []
    probes = {check.probe for check in checks if check.task == "route"}
    assert {"answer position", "option popularity", "field lane", "field object_c3", "field weather"} <= probes
    assert {"prerequisite hazard", "prerequisite grip", "prerequisite manoeuvre", "inputs, linear"} <= probes
    assert {"inputs + shuffled answers", "rule on gold answers", "copies across splits"} <= probes
    gold = [check.score for check in checks if check.probe == "inputs + gold answers, linear"]
    assert len(gold) == 2 and min(gold) > 0.95
    assert {check.kind for check in checks} == set(EXPLAINED) and unprobed(iov) == []


@pytest.mark.parametrize(
    ("change", "probe"),
    [
        (to_front, "answer position"),
        (always_x, "option popularity"),
        (lambda item: replace(item, fields={**item.fields, "leak": item.answer_word}), "field leak"),
        (lambda item: replace(item, answer=item.options.index(item.prerequisites["root"])), "prerequisite root"),
    ],
)
def test_a_shortcut_is_found(weaken, change, probe):
    before = verdicts(weaken(), "child")
    after = verdicts(weaken(change), "child")
    assert before.get(probe, True) and not after[probe]


def test_a_field_that_tells_a_root_is_found(weaken):
    assert not verdicts(weaken(), "root")["field a"]


def test_copies_across_splits_are_found(weaken):
    assert not verdicts(weaken(copies=True), "child")["copies across splits"]


def test_a_graph_that_does_not_matter_is_found(weaken):
    def unrelated(item: Item) -> Item:
        return replace(item, answer=item.options.index(WORDS[int(item.id) % 4]))

    assert not verdicts(weaken(unrelated), "child")["inputs + gold answers, linear"]


def test_table_shows_the_best_field_and_every_failure(iov, weaken):
    def lines(checks, **settings):
        console = Console(width=120, record=True, file=StringIO())
        console.print(check_table(checks, **settings))
        return console.export_text().splitlines()

    checks = check_taskset(iov)
    assert sum("field" in line for line in lines(checks)) == 4
    assert sum("field" in line for line in lines(checks, all_rows=True)) > 50
    assert any("field a" in line and "NO" in line for line in lines(weaken()))
