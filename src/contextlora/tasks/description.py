"""Reads what a task set's files say, and notes every fault of them instead of ending at the first."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from contextlora.graph.task_graph import GraphError, TaskGraph, declaration_faults
from contextlora.tasks.faults import Faults, TaskSetError, label, shown
from contextlora.tasks.prompts import wording_faults
from contextlora.tasks.reading import read_lines, read_yaml
from contextlora.tasks.rules import ItemRules, Placed
from contextlora.tasks.task import SPLITS, Item, Task

SET_KEYS = ("name", "tasks", "template", "as_context", "metadata")
_MOST_NAME = 100


class Description(NamedTuple):
    """What `taskset.yaml` holds; tasks with faults hold no more than their items are to be checked by."""

    name: str
    tasks: dict[str, Task]
    template: str | None
    as_context: str | None


def read_description(path: Path, faults: Faults) -> Description:
    """Reads `taskset.yaml`.

    Raises:
        TaskSetError: it cannot be read, or names no tasks, so that nothing else can be checked.
    """
    try:
        found, lines = read_yaml(path, faults)
        if not isinstance(found, dict) or not isinstance(found.get("tasks"), dict) or not found["tasks"]:
            raise TaskSetError("must hold the keys name and tasks (a mapping from task name to its settings)")
    except TaskSetError as error:
        faults.add(path.name, str(error))
        faults.raise_any()
    unknown = [label(key) for key in found if key not in SET_KEYS]
    if unknown:
        listed = ", ".join(unknown[:5])
        faults.add(
            path.name, f"has unknown keys {listed}; put what is your own into metadata. Known: {', '.join(SET_KEYS)}"
        )
    tasks = {}
    for name, config in found["tasks"].items():
        for fault in wording_faults(*_wording(config if isinstance(config, dict) else {})):
            faults.add(f"{path.name}:{lines.get(name, 1)}", f"task {label(name)}: {fault}")
        try:
            tasks[name] = Task.from_config(name, config)
        except TaskSetError as error:
            for fault in error.faults:
                faults.add(f"{path.name}:{lines.get(name, 1)}", fault)
            tasks[name] = _loose(name, config, found["tasks"])
    _note_graph_faults(path.name, tasks, lines, faults)
    name = taskset_name(found.get("name"), path.parent.name, path.name, faults)
    template, as_context = _wording(found)
    for fault in wording_faults(template, as_context):
        faults.add(path.name, fault)
    return Description(name, tasks, template, as_context)


def _wording(found: Mapping[str, Any]) -> tuple[Any, Any]:
    return tuple(None if found.get(key) in (None, "None") else found[key] for key in ("template", "as_context"))


def read_items(folder: Path, rules: ItemRules) -> dict[tuple[str, str], list[Placed]]:
    """The items of each (task, split) whose own form is right; notes the faults of all."""
    return {
        (task.name, split): _read_file(folder, task, split, rules)
        for task in rules.tasks.values()
        for split in SPLITS
        # A name that is no file name must not lead out of the folder.
        if not any(declaration_faults(task.name, (), ()))
    }


def _read_file(folder: Path, task: Task, split: str, rules: ItemRules) -> list[Placed]:
    where, found, num_lines = f"{split}/{task.name}.jsonl", [], 0
    try:
        for number, record in read_lines(folder / where):
            num_lines += 1
            try:
                if isinstance(record, TaskSetError):
                    raise record
                found.append(Placed(f"{where}:{number}", Item.from_record(record)))
            except TaskSetError as error:
                for fault in error.faults:
                    rules.faults.add(f"{where}:{number}", fault)
    except TaskSetError as error:
        rules.faults.add(where, f"task {label(task.name)}: {error}")
        return []
    if not num_lines:
        rules.faults.add(where, "holds no item; each task needs at least one in every split")
    rules.check(task, split, found)
    return found


def _loose(name: str, config: Any, tasks: Mapping[str, Any]) -> Task:
    """A task that stands in for one with faults, so that its items are checked for what is known of it."""
    config = config if isinstance(config, dict) else {}
    given, most = config.get("prerequisites"), config.get("num_options")
    listed = isinstance(given, list) and all(isinstance(needed, str) for needed in given)
    needed = tuple(given) if listed else () if given is None else tuple(other for other in tasks if other != name)
    return Task(name, needed, most if type(most) is int and most > 1 else sys.maxsize)


def _note_graph_faults(file: str, tasks: Mapping[str, Task], lines: Mapping[str, int], faults: Faults) -> None:
    before = faults.count
    for task in tasks.values():
        for fault in declaration_faults(task.name, task.prerequisites, tasks):
            faults.add(f"{file}:{lines.get(task.name, 1)}", fault)
    if faults.count > before:
        return
    try:
        TaskGraph({task.name: task.prerequisites for task in tasks.values()})
    except GraphError as error:
        faults.add(file, str(error))


def taskset_name(given: Any, default: str, where: str, faults: Faults) -> str:
    """A task set's name as text, the default where none is given; notes what it may not be."""
    name = default if given in (None, "None") else given
    # It becomes a part of paths, tables and tracked runs.
    plain = str(name) if isinstance(name, str | int) else ""
    if given not in (None, "None") or not default:
        if not plain.strip() or not plain.isprintable() or set("/\\") & set(plain) or plain in (".", ".."):
            faults.add(where, f"name must be one printable line without / and \\, got {shown(name)}")
        elif len(plain) > _MOST_NAME:
            faults.add(where, f"name must have at most {_MOST_NAME} characters, got {len(plain)}")
    return plain
