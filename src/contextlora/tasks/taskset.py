"""A task set is a folder; what users bring and what we generate have the same form.

taskset.yaml            name, template (optional), tasks: {name: {prerequisites, num_options, description, rule}}
<split>/<task>.jsonl    one item a line, for the splits train, validation and test
images/...              image files that the items name
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import yaml

from contextlora.files import write_atomically
from contextlora.graph.task_graph import TaskGraph
from contextlora.tasks.prompts import DEFAULT_TEMPLATE, check_template
from contextlora.tasks.task import SPLITS, Item, Task, TaskSetError

DESCRIPTION_FILE = "taskset.yaml"


@dataclass(frozen=True)
class TaskSet:
    """Tasks, their graph and their items, all checked.

    Attributes:
        name: from `taskset.yaml`.
        folder: where the images are found.
        tasks: by name, in the order of `taskset.yaml`.
        graph: which task needs which.
        template: prompt template, see `contextlora.tasks.prompts`.
        splits: the items of each (task, split).
    """

    name: str
    folder: Path
    tasks: Mapping[str, Task]
    graph: TaskGraph
    template: str
    splits: Mapping[tuple[str, str], tuple[Item, ...]]

    @classmethod
    def load(cls, folder: str | Path) -> "TaskSet":
        """Reads and checks a whole folder.

        Raises:
            TaskSetError: the folder, a task or an item breaks a rule; the message names file and line.
            GraphError: the prerequisites are no directed acyclic graph.
        """
        folder = Path(folder)
        name, tasks, template = _read_description(folder)
        graph = TaskGraph({task.name: task.prerequisites for task in tasks.values()})
        splits = {}
        for task in tasks.values():
            ancestors = set(graph.prerequisites(task.name, scope="ancestors"))
            # Of all splits together: no scene may be trained on and tested.
            split_of_scene: dict[str, str] = {}
            for split in SPLITS:
                splits[task.name, split] = _read_items(folder, task, split, ancestors, split_of_scene)
        return cls(name, folder, tasks, graph, template, splits)

    @classmethod
    def from_items(
        cls,
        tasks: Iterable[Task],
        items: Mapping[tuple[str, str], Iterable[Item]],
        *,
        name: str = "taskset",
        folder: str | Path = ".",
        template: str = DEFAULT_TEMPLATE,
    ) -> "TaskSet":
        """A task set made in memory, checked like one that is read.

        Args:
            tasks: with their prerequisites.
            items: (task, split) -> items, for the splits train, validation and test.
            name: of the set.
            folder: what the items' image paths are relative to.
            template: of the prompts, see `contextlora.tasks.prompts`.

        Raises:
            TaskSetError: an item breaks a rule, or a task has no items in a split.
            GraphError: the prerequisites are no directed acyclic graph.
        """
        known, folder = {task.name: task for task in tasks}, Path(folder)
        graph = TaskGraph({task.name: task.prerequisites for task in known.values()})
        check_template(template, where=name)
        splits = {}
        for task in known.values():
            ancestors = set(graph.prerequisites(task.name, scope="ancestors"))
            split_of_scene: dict[str, str] = {}
            for split in SPLITS:
                found = tuple(items.get((task.name, split), ()))
                for item in found:
                    _check(item, task, folder, ancestors)
                    _enter_scene(item, task, split, split_of_scene)
                if not found:
                    raise TaskSetError(
                        f"task {task.name} has no {split} item; each task needs at least one in every split"
                    )
                splits[task.name, split] = found
        return cls(name, folder, known, graph, template, splits)

    @cached_property
    def has_images(self) -> bool:
        """Whether any item shows one."""
        return any(item.image for items in self.splits.values() for item in items)

    def with_train_items(self, most: int | None) -> "TaskSet":
        """With the first `most` train items of every task; None takes all."""
        # The first of every task: in generated sets those of the same scenes, so that chains stay whole.
        return replace(
            self, splits={key: items[:most] if key[1] == "train" else items for key, items in self.splits.items()}
        )

    def items(self, task: str, split: str) -> tuple[Item, ...]:
        """Items of one task and split, in file order."""
        return self.splits[task, split]

    def item(self, task: str, split: str, scene: str) -> Item | None:
        """The task's item about a scene, or None where it has none."""
        return self._by_scene[task, split].get(scene)

    @cached_property
    def _by_scene(self) -> dict[tuple[str, str], dict[str, Item]]:
        return {key: {item.scene: item for item in items} for key, items in self.splits.items()}


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
    return {key: value for key, value in record.items() if value not in (None, {})}


def _read_description(folder: Path) -> tuple[str, dict[str, Task], str]:
    path = folder / DESCRIPTION_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TaskSetError(f"a task set needs a readable {path}: {error.strerror}") from error
    try:
        description = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TaskSetError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(description, dict) or not isinstance(description.get("tasks"), dict):
        raise TaskSetError(f"{path} must hold the keys name and tasks (a mapping from task name to its settings)")
    unknown = set(description) - {"name", "template", "tasks"}
    if unknown:
        raise TaskSetError(f"{path} has unknown keys {', '.join(sorted(unknown))}; known: name, template, tasks")
    tasks = {str(name): Task.from_config(str(name), config) for name, config in description["tasks"].items()}
    template = str(description.get("template", DEFAULT_TEMPLATE))
    check_template(template, where=str(path))
    return str(description.get("name", folder.name)), tasks, template


def _read_items(
    folder: Path, task: Task, split: str, ancestors: set[str], split_of_scene: dict[str, str]
) -> tuple[Item, ...]:
    path = folder / split / f"{task.name}.jsonl"
    try:
        # Not splitlines(): JSON may hold U+2028 and other line ends as they are.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskSetError(f"task {task.name} needs a readable {path}: {error}") from error
    items = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = Item.from_record(json.loads(line))
            _check(item, task, folder, ancestors)
            _enter_scene(item, task, split, split_of_scene)
        except json.JSONDecodeError as error:
            raise TaskSetError(f"{path}:{number}: not valid JSON: {error}") from error
        except TaskSetError as error:
            raise TaskSetError(f"{path}:{number}: {error}") from None
        items.append(item)
    if not items:
        raise TaskSetError(f"{path} holds no item; each task needs at least one in every split")
    return tuple(items)


def _enter_scene(item: Item, task: Task, split: str, split_of_scene: dict[str, str]) -> None:
    if item.scene in split_of_scene:
        raise TaskSetError(
            f"scene {item.scene} already has an item of task {task.name} in {split_of_scene[item.scene]}; "
            "give each item a scene of its own, and no scene to two splits"
        )
    split_of_scene[item.scene] = split


def _check(item: Item, task: Task, folder: Path, ancestors: set[str]) -> None:
    if len(item.options) > task.num_options:
        raise TaskSetError(f"item {item.id} has {len(item.options)} options, its task at most {task.num_options}")
    unknown = set(item.prerequisites) - ancestors
    if unknown:
        raise TaskSetError(
            f"item {item.id} answers {', '.join(sorted(unknown))}, no prerequisite of {task.name}; "
            f"its prerequisites: {', '.join(sorted(ancestors)) or 'none'}"
        )
    # Found out now, not when training comes to the item.
    if item.image and not (folder / item.image).is_file():
        raise TaskSetError(f"item {item.id}: image {item.image} not found in {folder}")
    if not item.image and item.image_text is None and not item.question:
        raise TaskSetError(f"item {item.id} asks nothing: question and image are empty")
