"""A task set is a folder; what users bring and what we generate have the same form.

taskset.yaml            name, tasks: {name: {prerequisites, num_options, description, rule, context, ...}}, template ...
<split>/<task>.jsonl    one item a line, for the splits train, validation and test
images/...              image files that the items name
"""

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from contextlora.files import write_atomically
from contextlora.graph.task_graph import TaskGraph
from contextlora.tasks.description import read_description, read_items
from contextlora.tasks.faults import Faults, shown
from contextlora.tasks.prompts import (
    DEFAULT_TEMPLATE,
    NATURAL_CONTEXT,
    NATURAL_TEMPLATE,
    Prompt,
    render,
    wording_faults,
)
from contextlora.tasks.rules import ItemRules, Placed, note_stray_files
from contextlora.tasks.task import SPLITS, Item, Task

DESCRIPTION_FILE = "taskset.yaml"


@dataclass(frozen=True)
class TaskSet:
    """Tasks, their graph and their items, all checked.

    Attributes:
        name: from `taskset.yaml`.
        folder: where the images are found.
        tasks: by name, in the order of `taskset.yaml`.
        graph: which task needs which.
        template, as_context: of the prompts, see `contextlora.tasks.prompts`; None leaves them to the model.
        splits: the items of each (task, split).
        places: where each of them stands, such as `train/route.jsonl:3`; for messages.
    """

    name: str
    folder: Path
    tasks: Mapping[str, Task]
    graph: TaskGraph
    template: str | None
    splits: Mapping[tuple[str, str], tuple[Item, ...]]
    places: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict, repr=False)
    as_context: str | None = None

    @classmethod
    def load(cls, folder: str | Path) -> "TaskSet":
        """Reads and checks a whole folder.

        Raises:
            TaskSetError: the folder, the graph, tasks or items break rules; names file and line of each fault.
        """
        folder = Path(folder)
        faults = Faults(str(folder))
        description = read_description(folder / DESCRIPTION_FILE, faults)
        rules = ItemRules(folder, description.tasks, faults)
        splits, places = rules.complete(read_items(folder, rules))
        note_stray_files(folder, description.tasks, faults)
        faults.raise_any()
        graph = TaskGraph({task.name: task.prerequisites for task in description.tasks.values()})
        words = description.template, splits, places, description.as_context
        return cls(description.name, folder, description.tasks, graph, *words)

    @classmethod
    def from_items(
        cls,
        tasks: Iterable[Task],
        items: Mapping[tuple[str, str], Iterable[Item]],
        *,
        name: str = "taskset",
        folder: str | Path = ".",
        template: str | None = None,
        as_context: str | None = None,
    ) -> "TaskSet":
        """A task set made in memory, checked like one that is read.

        Args:
            tasks: with their prerequisites.
            items: (task, split) -> items, for the splits train, validation and test.
            name: of the set.
            folder: what the items' image paths are relative to.
            template, as_context: of the prompts, see `contextlora.tasks.prompts`.

        Raises:
            TaskSetError: an item breaks a rule, or a task has no items in a split.
            GraphError: the prerequisites are no directed acyclic graph.
        """
        tasks, folder = tuple(tasks), Path(folder)
        graph = TaskGraph((task.name, task.prerequisites) for task in tasks)
        known, faults = {task.name: task for task in tasks}, Faults(name)
        for where, one, other in (
            ("", template, as_context),
            *((f"task {t.name}: ", t.template, t.as_context) for t in tasks),
        ):
            for fault in wording_faults(one, other):
                faults.add("", f"{where}{fault}")
        rules = ItemRules(folder, known, faults)
        placed = {}
        for task, split in itertools.product(graph.tasks, SPLITS):
            found = tuple(items.get((task, split), ()))
            places = [Placed(f"{split}/{task}[{index}]", item) for index, item in enumerate(found)]
            if not found:
                faults.add("", f"task {task} has no {split} item; each task needs at least one in every split")
            placed[task, split] = rules.well_formed(places)
            rules.check(known[task], split, placed[task, split])
        for key in items.keys() - placed.keys():
            faults.add("", f"items must be of a known task and split, got {shown(key)}")
        splits, places = rules.complete(placed)
        faults.raise_any()
        return cls(name, folder, known, graph, template, splits, places, as_context)

    @cached_property
    def has_images(self) -> bool:
        """Whether any item shows one."""
        return any(item.image for items in self.splits.values() for item in items)

    def with_train_items(self, most: int | None) -> "TaskSet":
        """With the first `most` train items of every task that build on items which are kept too; None takes all."""
        if most is None:
            return self
        splits, places, kept = dict(self.splits), dict(self.places), {}
        for task in self.graph.tasks:  # in topological order: those that they build on first
            items = self.items(task, "train")
            whole = [
                number
                for number, item in enumerate(items)
                if all(parent in kept[name] for name, parent in item.parents.items())
            ]
            # Where none is whole, what a prompt lacks is said when prompts are checked.
            chosen = (whole or range(len(items)))[:most]
            splits[task, "train"] = tuple(items[number] for number in chosen)
            if where := self.places.get((task, "train")):
                places[task, "train"] = tuple(where[number] for number in chosen)
            kept[task] = {item.id for item in splits[task, "train"]}
        return replace(self, splits=splits, places=places)

    def worded(self, in_sentences: bool) -> "TaskSet":
        """With words for a model where the set brings none: sentences, or those of the bundled model."""
        template, as_context = (NATURAL_TEMPLATE, NATURAL_CONTEXT) if in_sentences else (DEFAULT_TEMPLATE, None)
        return replace(self, template=self.template or template, as_context=self.as_context or as_context)

    def template_of(self, task: str) -> str:
        """The template of the task's prompts."""
        return self.tasks[task].template or self.template or DEFAULT_TEMPLATE

    def prompt(self, task: str, item: Item, context: Mapping[str, str] | None, **settings: Any) -> Prompt:
        """The prompt of a task's item, with the answers in `context`; settings are further arguments of `render`."""
        words = {name: self.tasks[name].as_context or self.as_context for name in context or ()}
        form = {"template": self.template_of(task), "as_context": words, "folder": self.folder}
        return render(item, self.tasks[task], context, **form, **settings)

    def context_tasks(self, task: str, scope: str) -> tuple[str, ...]:
        """The prerequisites whose answers may stand in the task's prompts."""
        shown = self.tasks[task].context
        return tuple(name for name in self.graph.prerequisites(task, scope) if shown is None or name in shown)

    def items(self, task: str, split: str) -> tuple[Item, ...]:
        """Items of one task and split, in file order."""
        return self.splits[task, split]

    def parent(self, task: str, split: str, item: Item) -> Item | None:
        """The task's item that an item of another task builds on, or None where it has none."""
        return self._by_id[task, split].get(item.parents.get(task))

    @cached_property
    def _by_id(self) -> dict[tuple[str, str], dict[str, Item]]:
        return {key: {item.id: item for item in items} for key, items in self.splits.items()}


def write_taskset(
    folder: Path, name: str, tasks: Iterable[Task], items: Mapping[tuple[str, str], Iterable[Item]], template: str = ""
) -> None:
    """Writes `taskset.yaml` and one JSONL a task and split; the images are the caller's."""
    description = {"name": name} | ({"template": template} if template else {})
    description["tasks"] = {task.name: task.to_config() for task in tasks}
    for (task, split), rows in items.items():
        lines = "".join(json.dumps(_record(item)) + "\n" for item in rows)
        write_atomically(folder / split / f"{task}.jsonl", lines)
    # Last, since a folder with it counts as a task set; unsorted, since the declared order breaks ties in the graph.
    text = yaml.safe_dump(description, sort_keys=False, default_flow_style=None)
    write_atomically(folder / DESCRIPTION_FILE, text)


def _record(item: Item) -> dict[str, object]:
    record = {key: dict(value) if isinstance(value, Mapping) else value for key, value in vars(item).items()}
    return {key: value for key, value in record.items() if value is not None and value != {}}
