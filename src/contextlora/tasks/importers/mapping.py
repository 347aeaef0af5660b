"""A mapping file: which columns of a table are the tasks, questions, options and answers of a task set.

    name: machines
    scene: "{site} {machine}"          # rows of one scene belong together
    question: "In {machine}, {text}"   # a column, or text with columns in braces
    options: [a, b, c]                 # columns; one column that holds a list; left out: the task's answers
    answer: label                      # a column
    answer_as: text                    # or letter, index, index_from_1, one_hot
    tasks:
      cause: {where: {kind: cause}, description: what is broken}
      action: {where: {kind: action}, prerequisites: [cause], answer: what_to_do}
    split: {by: group, column: site, validation: 15, test: 15}

Keys beside `name`, `template`, `tasks` and `split` hold for every task that does not give its own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from contextlora.errors import known
from contextlora.tasks.description import taskset_name
from contextlora.tasks.faults import Faults, TaskSetError, label, shown
from contextlora.tasks.prompts import check_template
from contextlora.tasks.reading import read_yaml
from contextlora.tasks.task import SPLITS

ANSWER_FORMS = ("text", "letter", "index", "index_from_1", "one_hot")
SPLIT_RULES = ("scene", "group", "time", "given")
_FIELD = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class TaskColumns:
    """Where the items of a task are found.

    Attributes:
        question, scene, image_text: a column, or text with columns in braces.
        answer, image: a column; an image's is a file, relative to the table's folder, or holds its bytes.
        answer_as: how the answer is written, one of `ANSWER_FORMS`.
        options: columns, one column that holds a list, or None: the task's answers.
        num_options: how many of the task's answers are offered where `options` is None; None offers all.
        option_order: `given`, or `shuffled` by the split's seed; that of the task's answers is always shuffled.
        where: column -> the value, or values, of the rows that are the task's.
        prerequisites, context, description: as in taskset.yaml.
    """

    question: str
    answer: str
    scene: str
    options: str | list[str] | None = None
    answer_as: str = "text"
    num_options: int | None = None
    option_order: str = "given"
    image: str | None = None
    image_text: str | None = None
    where: dict[str, Any] = field(default_factory=dict)
    prerequisites: list[str] = field(default_factory=list)
    context: list[str] | None = None
    description: str = ""


@dataclass(frozen=True)
class SplitRule:
    """How scenes are divided into splits.

    Attributes:
        by: scene (at random), group (all scenes with one value of `column` stay together), time (the earliest train,
            the latest test), or given (`column` says it).
        column: that `by` reads.
        validation, test: their shares in percent.
        seed: of random splits.
        names: split -> the values of `column` that mean it; the split's own name unless given.
    """

    by: str = "scene"
    column: str | None = None
    validation: int = 15
    test: int = 15
    seed: int = 0
    names: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TableMapping:
    """A whole mapping file; see the module's head."""

    name: str
    tasks: Mapping[str, TaskColumns]
    split: SplitRule = SplitRule()
    template: str = ""


_TEXT = ("question", "answer", "scene", "image", "image_text", "description", "answer_as")
_NOT_SHARED = ("where", "prerequisites", "context", "description")
_SHARED = tuple(entry.name for entry in fields(TaskColumns) if entry.name not in _NOT_SHARED)


def read_mapping(path: str | Path) -> TableMapping:
    """Reads a mapping file.

    Raises:
        TaskSetError: it cannot be read, or breaks a rule; names every fault.
    """
    path = Path(path)
    faults = Faults(str(path))
    try:
        found, _ = read_yaml(path, faults)
        mapping = parse_mapping(found, faults)
    except TaskSetError as error:
        faults.add("", str(error))
    faults.raise_any()
    return mapping


def parse_mapping(found: Any, faults: Faults) -> TableMapping:
    """Builds a mapping from a plain tree; what is wrong goes to `faults`, and the result holds what is not."""
    if not isinstance(found, dict) or not isinstance(found.get("tasks"), dict) or not found["tasks"]:
        raise TaskSetError("a mapping must hold the keys name and tasks (a mapping from task name to its columns)")
    _note_unknown("", found, ("name", "template", "tasks", "split", *_SHARED), faults)
    shared = {key: found[key] for key in _SHARED if key in found}
    tasks = {}
    for name, own in found["tasks"].items():
        columns = _task(name, shared | (own or {}), faults) if isinstance(own, dict | None) else None
        if columns is None:
            faults.add("", f"task {label(name)} must map question, answer and scene to columns, got {shown(own)}")
        else:
            tasks[name] = columns
    template = found.get("template", "")
    if template:
        check_template(str(template), where="mapping")
    name = taskset_name(found.get("name"), "", "mapping", faults)
    return TableMapping(name, tasks, _split(found.get("split", {}), faults), str(template))


def _task(name: str, given: Mapping[str, Any], faults: Faults) -> TaskColumns | None:
    where = f"task {label(name)}"
    _note_unknown(f"{where}: ", given, [entry.name for entry in fields(TaskColumns)], faults)
    before = faults.count
    for key in ("question", "answer", "scene"):
        if key not in given:
            faults.add("", f"{where} must name the column of its {key}; add the key {key} to it, or above tasks")
    for key in _TEXT:
        if key in given and (not isinstance(given[key], str) or not given[key].strip()):
            faults.add("", f"{where}: {key} must be text, got {shown(given[key])}")
    options = given.get("options", "")
    if not isinstance(options, str) and not (
        isinstance(options, list) and all(isinstance(part, str) for part in options)
    ):
        faults.add("", f"{where}: options must be a column or a list of columns, got {shown(options)}")
    if given.get("answer_as", "text") not in ANSWER_FORMS:
        form = shown(given["answer_as"])
        faults.add("", f"{where}: answer_as must be one of {', '.join(ANSWER_FORMS)}, got {form}")
    elif given.get("answer_as", "text") != "text" and not options:
        faults.add("", f"{where}: answer_as must be text where no options are given, got {given['answer_as']}")
    if given.get("option_order", "given") not in ("given", "shuffled"):
        faults.add("", f"{where}: option_order must be given or shuffled, got {shown(given['option_order'])}")
    if not isinstance(given.get("where", {}), dict):
        faults.add("", f"{where}: where must map columns to values, got {shown(given['where'])}")
    for key in ("prerequisites", "context"):
        listed = given.get(key, [])
        if not isinstance(listed, list) or not all(isinstance(needed, str) for needed in listed):
            faults.add("", f"{where}: {key} must be a list of tasks, got {shown(listed)}")
    if type(given.get("num_options", 2)) is not int or given.get("num_options", 2) < 2:
        faults.add("", f"{where}: num_options must be a whole number of 2 or more, got {shown(given['num_options'])}")
    known_keys = {entry.name for entry in fields(TaskColumns)}
    plain = {key: value for key, value in given.items() if key in known_keys}
    return TaskColumns(**plain) if faults.count == before else TaskColumns("", "", "")


def _split(found: Any, faults: Faults) -> SplitRule:
    if not isinstance(found, dict):
        faults.add("", f"split must be a mapping such as {{by: scene, test: 20}}, got {shown(found)}")
        return SplitRule()
    before = faults.count
    _note_unknown("split: ", found, [entry.name for entry in fields(SplitRule)], faults)
    rule = found.get("by", "scene")
    if rule not in SPLIT_RULES:
        faults.add("", f"split: by must be one of {', '.join(SPLIT_RULES)}, got {shown(rule)}")
    elif rule != "scene" and not isinstance(found.get("column"), str):
        faults.add("", f"split: by {rule} must name a column, got {shown(found.get('column'))}; add the key column")
    shares = [found.get(key, 15) for key in ("validation", "test")]
    if not all(type(share) is int and share > 0 for share in shares) or sum(shares) >= 100:
        faults.add("", f"split: validation and test must be whole per cents above 0, together below 100, got {shares}")
    if type(found.get("seed", 0)) is not int:
        faults.add("", f"split: seed must be a whole number, got {shown(found['seed'])}")
    names = found.get("names", {})
    if not isinstance(names, dict) or not set(names) <= set(SPLITS):
        faults.add("", f"split: names must map {', '.join(SPLITS)} to values of the column, got {shown(names)}")
    return SplitRule(**found) if faults.count == before else SplitRule()


def _note_unknown(where: str, found: Mapping[str, Any], names: list[str] | tuple[str, ...], faults: Faults) -> None:
    for key in found:
        if key not in names:
            faults.add("", f"{where}unknown key {label(key)}{known(key, names)}")


def columns_of(text: str) -> list[str]:
    """The columns that a text of a mapping names: those in braces, or itself."""
    return _FIELD.findall(text) or [text]


def filled(text: str, cells: Mapping[str, Any]) -> str:
    """A text of a mapping with a row's cells."""
    return _FIELD.sub(lambda match: str(cells[match[1]]), text) if _FIELD.search(text) else str(cells[text])
