"""The data check: probes that look for shortcuts in a task set and ask whether its graph matters.

Every probe learns on the train split and is scored on the test split. A shortcut may score at most `SHORTCUT_MARGIN`
above chance (three standard errors where the test split is so small that luck alone exceeds it). The probes:

| probe                         | learns the answer from                                           | must score      |
|-------------------------------|------------------------------------------------------------------|-----------------|
| answer position               | nothing: the position that is right most often                   | near chance     |
| option popularity             | the options: the one that is right most often when offered       | near chance     |
| field <name>                  | one named input (`Item.fields`) alone                            | near chance     |
| prerequisite <task>           | one ancestor's right answer alone                                | <= chance + .20 |
| inputs, linear                | all named inputs, one-hot, linearly; tasks with prerequisites    | near chance     |
| inputs + gold answers, linear | these and the direct prerequisites' right answers as one feature | >= inputs + .20 |
| inputs + shuffled answers     | the same, but the answers of other scenes                        | near chance     |
| inputs, pairs                 | all named inputs and their products; tasks without prerequisites | >= chance + .10 |
| rule on gold answers          | the task's own rule applied to the direct prerequisites' answers | 1               |
| copies across splits          | share of validation and test items that also stand in train      | 0               |

Probes of named inputs need `fields` in the items, that of the rule a `rule` in `taskset.yaml`, those of prerequisites
their right answers; else they are left out.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from rich.table import Table
from rich.text import Text

from contextlora.tasks import probes
from contextlora.tasks.task import SPLITS, Item, Task
from contextlora.tasks.taskset import TaskSet

SHORTCUT_MARGIN = 0.10
PREREQUISITE_MARGIN = 0.20  # a child with four options that one prerequisite solves better than .45 needs no graph
GRAPH_GAIN = 0.20
EXPLAINED = {  # probe -> what it does, and what it means beyond its limit
    "answer position": "takes the place that is right most often; above: the order of the options tells, shuffle them",
    "option popularity": "takes the option that is right most often; above: compare results with this, not with chance",
    "field": "reads one of the items' fields alone; above: that field nearly settles the answer",
    "prerequisite": "reads one right answer alone; above: it nearly settles this task, as it may in real data",
    "inputs, linear": "adds up all fields; above: the task can be solved without its prerequisites",
    "inputs + gold answers, linear": "has right answers of the prerequisites too; below: these hardly help, so the "
    "graph hardly matters here",
    "inputs + shuffled answers": "has those of other scenes; above: it is not the answers themselves that help",
    "inputs, pairs": "joins the fields in pairs; below: they do not tell the answer of this root",
    "rule on gold answers": "applies the task's rule; below 1: the rule or an answer is wrong",
    "copies across splits": "counts items whose question and image stand in train; above 0: part of the test is known",
}


@dataclass(frozen=True)
class Check:
    """Score of one probe on one task; `limit` is the most allowed, or the least where `at_least`."""

    task: str
    probe: str
    score: float
    chance: float
    limit: float
    at_least: bool = False

    @property
    def ok(self) -> bool:
        """Whether the limit holds."""
        return self.score >= self.limit if self.at_least else self.score <= self.limit

    @property
    def kind(self) -> str:
        """The probe's key in `EXPLAINED`."""
        return self.probe if self.probe in EXPLAINED else self.probe.split()[0]


def check_taskset(taskset: TaskSet) -> list[Check]:
    """Runs every probe that the task set has the fields and answers for."""
    return [check for task in taskset.tasks.values() for check in _check_task(taskset, task)]


def unprobed(taskset: TaskSet) -> list[str]:
    """What no probe can tell about the edges of the graph, in a line for each."""
    lines = []
    for task in taskset.graph.tasks:
        for needed in taskset.graph.prerequisites(task):
            edge = f"{needed} -> {task}: no item of {task} shares its scene with one of {needed}"
            if needed not in _answered(taskset, task):
                lines.append(f"{edge}, and none gives its right answer: whether it helps could not be probed")
            elif not any(taskset.parent(needed, split, i) for split in SPLITS for i in taskset.items(task, split)):
                lines.append(f"{edge}: only right answers could be probed, a model has none of its own to give")
    return lines


def check_table(checks: list[Check], all_rows: bool = False, failed: str = "NO") -> Table:
    """The checks as a table.

    Args:
        checks: of one task set.
        all_rows: whether of each task's single-field probes others than the best one and the failed stand there.
        failed: what it says of a limit that is broken.
    """
    table = Table("task", "probe", "score", "chance", "limit", "ok", title="data check")
    for check in checks:
        rivals = [other for other in checks if other.task == check.task and other.probe.startswith("field ")]
        if check in rivals and check.ok and check != max(rivals, key=lambda rival: rival.score) and not all_rows:
            continue
        limit = f"{'>=' if check.at_least else '<='} {check.limit:.3f}"
        verdict = Text("yes", "green") if check.ok else Text(failed, "red")
        table.add_row(check.task, check.probe, f"{check.score:.3f}", f"{check.chance:.3f}", limit, verdict)
    return table


def explanation_table(checks: list[Check]) -> Table:
    """What each probe does that was run, and what it means beyond its limit."""
    table = Table("probe", "what it does; what it means beyond its limit", title="the probes")
    for kind in dict.fromkeys(check.kind for check in checks):
        table.add_row(kind, EXPLAINED[kind])
    return table


def _check_task(taskset: TaskSet, task: Task) -> Iterator[Check]:
    train, test = taskset.items(task.name, "train"), taskset.items(task.name, "test")
    chance = sum(1 / len(item.options) for item in test) / len(test)
    near_chance = chance + max(SHORTCUT_MARGIN, 3 * math.sqrt(chance * (1 - chance) / len(test)))

    def shortcut(probe: str, score: float) -> Check:
        return Check(task.name, probe, score, chance, near_chance)

    yield shortcut("answer position", probes.answer_position(train, test))
    yield shortcut("option popularity", probes.lookup(train, test, lambda item: None))
    for name in train[0].fields:
        yield shortcut(f"field {name}", probes.lookup(train, test, lambda item, name=name: item.fields.get(name)))
    answered = _answered(taskset, task.name)
    for name in answered:
        score = probes.lookup(train, test, lambda item, name=name: item.prerequisites.get(name))
        yield Check(task.name, f"prerequisite {name}", score, chance, chance + PREREQUISITE_MARGIN)
    if set(task.prerequisites) & set(answered):
        inputs = probes.linear(train, test)
        yield shortcut("inputs, linear", inputs)
        gold = probes.linear(train, test, task.prerequisites)
        yield Check(task.name, "inputs + gold answers, linear", gold, chance, inputs + GRAPH_GAIN, at_least=True)
        shuffled = probes.linear(_shuffled(train), _shuffled(test), task.prerequisites)
        yield shortcut("inputs + shuffled answers", shuffled)
    elif train[0].fields and not task.prerequisites:
        # A root may join two inputs, such as lane and image, which no linear probe can.
        learnable = probes.pairs(train, test)
        yield Check(task.name, "inputs, pairs", learnable, chance, chance + SHORTCUT_MARGIN, at_least=True)
    if task.rule and set(task.prerequisites) <= set(answered):
        yield Check(task.name, "rule on gold answers", _rule_accuracy(task, test), chance, 1.0, at_least=True)
    yield Check(task.name, "copies across splits", _copies(taskset, task.name), chance, 0.0)


def _answered(taskset: TaskSet, task: str) -> tuple[str, ...]:
    """The ancestors whose right answers some item of the task knows, in train and in test."""
    known = [
        {name for item in taskset.items(task, split) for name in item.prerequisites} for split in ("train", "test")
    ]
    return tuple(name for name in taskset.graph.prerequisites(task, "ancestors") if all(name in part for part in known))


def _shuffled(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """The items with the prerequisites' answers of the scene half the split away."""
    # No random numbers, so every check of a set prints the same figures.
    half = len(items) // 2
    others = items[half:] + items[:half]
    return tuple(
        Item(**{**vars(item), "prerequisites": other.prerequisites}) for item, other in zip(items, others, strict=True)
    )


def _rule_accuracy(task: Task, items: tuple[Item, ...]) -> float:
    given = [tuple(item.prerequisites.get(name) for name in task.prerequisites) for item in items]
    return sum(task.rule.get(key) == item.answer_word for key, item in zip(given, items, strict=True)) / len(items)


def _copies(taskset: TaskSet, task: str) -> float:
    """Share of the task's validation and test items whose question and image also stand in train."""

    def content(item: Item) -> tuple[str, str]:
        # By content: a copy may have another file name.
        image = sha256((taskset.folder / item.image).read_bytes()).hexdigest() if item.image else ""
        return f"{item.question}\n{item.image_text}", image

    train = {content(item) for item in taskset.items(task, "train")}
    held_out = [*taskset.items(task, "validation"), *taskset.items(task, "test")]
    return sum(content(item) in train for item in held_out) / len(held_out)
