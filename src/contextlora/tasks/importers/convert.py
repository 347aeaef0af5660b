"""Makes a task set of the rows of a table, as a mapping says."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple

from contextlora.errors import known, tail
from contextlora.files import check_ordinary, replace_folder, write_atomically
from contextlora.graph.task_graph import TaskGraph
from contextlora.tasks.faults import Faults, TaskSetError, label, shown
from contextlora.tasks.importers.mapping import TableMapping, TaskColumns, columns_of, filled
from contextlora.tasks.importers.splits import split_scenes
from contextlora.tasks.importers.tables import Row, listed
from contextlora.tasks.rules import ItemRules, Placed
from contextlora.tasks.task import SPLITS, Item, Task
from contextlora.tasks.taskset import TaskSet, write_taskset

_MOST_IMAGE_BYTES = 1 << 30


class _Found(NamedTuple):
    row: Row
    item: Item


def import_rows(rows: Sequence[Row], mapping: TableMapping, folder: Path) -> TaskSet:
    """Writes a task set into `folder`, which appears when it is whole and checked.

    Raises:
        GraphError: the prerequisites are no directed acyclic graph.
        TaskSetError: a row or the mapping breaks a rule; names file, line and rule of each fault.
    """
    faults = Faults(mapping.name)
    _note_missing_columns(rows, mapping, faults)
    faults.raise_any()
    TaskGraph({name: columns.prerequisites for name, columns in mapping.tasks.items()})  # raises what is wrong with it
    with replace_folder(folder) as unfinished:
        found = {name: list(_items(name, mapping, rows, unfinished, faults)) for name in mapping.tasks}
        faults.raise_any()
        tasks = {name: _task(name, columns, found[name]) for name, columns in mapping.tasks.items()}
        rules = ItemRules(unfinished, tasks, faults)
        placed = _in_splits(found, mapping, rules)
        complete, _ = rules.complete(placed)
        faults.raise_any()
        write_taskset(unfinished, mapping.name, tasks.values(), complete, mapping.template)
    return TaskSet.load(folder)


def _note_missing_columns(rows: Sequence[Row], mapping: TableMapping, faults: Faults) -> None:
    # Where rows have unequal columns, a missing one is a fault of the row.
    there = set().union(*(row.cells for row in rows))
    needed = [("split", mapping.split.column)] if mapping.split.column else []
    for name, columns in mapping.tasks.items():
        options = columns.options if isinstance(columns.options, list) else [columns.options]
        plain = [columns.answer, columns.image, *options, *columns.where]
        texts = (columns.question, columns.scene, *filter(None, [columns.image_text]))
        needed += [(f"task {label(name)}", column) for column in plain if column]
        needed += [(f"task {label(name)}", column) for text in texts for column in columns_of(text)]
    names = sorted(label(column.strip()) for column in there)
    for where, column in dict.fromkeys(needed):
        if column not in there:
            faults.add("", f"{where}: the table has no column {shown(column)}{known(column, names)}")


def _items(name: str, mapping: TableMapping, rows: Sequence[Row], folder: Path, faults: Faults) -> Iterator[_Found]:
    columns = mapping.tasks[name]
    own = [row for row in rows if all(_is_one_of(row.cells.get(key), value) for key, value in columns.where.items())]
    if not own:
        faults.add("", f"task {label(name)}: no row has {shown(columns.where)}; mend what its where asks for")
    labels = [] if columns.options else sorted({str(row.cells.get(columns.answer)).strip() for row in own})
    for row in own:
        rng = random.Random(f"{mapping.split.seed} {name} {row.where}")
        try:
            yield _Found(row, _item(row, columns, labels, rng, folder))
        except TaskSetError as error:
            faults.add(row.where, str(error))
        except KeyError as error:
            faults.add(row.where, f"it lacks column {shown(error.args[0])}; add it")


def _is_one_of(cell: Any, wanted: Any) -> bool:
    return str(cell) in map(str, wanted if isinstance(wanted, list) else [wanted])


def _item(row: Row, columns: TaskColumns, labels: list[str], rng: random.Random, folder: Path) -> Item:
    options, answer = _options(row, columns, labels, rng)
    cell = row.cells[columns.image] if columns.image else None
    return Item(
        id=row.where,
        scene=filled(columns.scene, row.cells).strip(),
        question=filled(columns.question, row.cells).strip(),
        options=tuple(options),
        answer=answer,
        image=_copy_image(cell, row.folder, folder) if cell else None,
        image_text=filled(columns.image_text, row.cells) if columns.image_text else None,
    )


def _options(row: Row, columns: TaskColumns, labels: list[str], rng: random.Random) -> tuple[list[str], int]:
    cell = row.cells[columns.answer]
    if not columns.options:
        right = str(cell).strip()
        others = [word for word in labels if word != right]
        options = [right, *rng.sample(others, min(len(others), (columns.num_options or len(labels)) - 1))]
        return _shuffled(options, 0, rng)  # or the right one would always be the first
    if isinstance(columns.options, list):
        options = [str(row.cells[column]).strip() for column in columns.options if row.cells[column] not in (None, "")]
    else:
        options = [str(part).strip() for part in listed(row.cells[columns.options])]
    answer = _answer(cell, columns.answer_as, options)
    return _shuffled(options, answer, rng) if columns.option_order == "shuffled" else (options, answer)


def _shuffled(options: list[str], answer: int, rng: random.Random) -> tuple[list[str], int]:
    order = rng.sample(range(len(options)), len(options))
    return [options[index] for index in order], order.index(answer)


def _answer(cell: Any, form: str, options: list[str]) -> int:
    """The index of the right option."""
    word = str(cell).strip()
    try:
        if form == "text":
            return options.index(word)
        if form == "one_hot":
            # As JSON and CSV write them.
            [right] = [index for index, flag in enumerate(listed(cell)) if str(flag).lower() in ("true", "1")]
        elif form == "letter":
            right = ascii_uppercase.index(word.upper())
        else:
            right = int(word) - (form == "index_from_1")
        options[right]
    except (ValueError, IndexError):
        right = -1
    if right < 0:
        wanted = {"one_hot": "a list with one true for the right option", "text": "one of the options"}
        rule = wanted.get(form, f"the {form.replace('_', ' ')} of one of the {len(options)} options")
        raise TaskSetError(f"the answer must be {rule}, got {shown(cell)}, options {shown(options)}; see answer_as")
    return right


def _copy_image(cell: Any, table_folder: Path, folder: Path) -> str:
    """Puts an image into the task set's folder, under a name made of its content; returns that."""
    path, content = (cell.get("path"), cell.get("bytes")) if isinstance(cell, dict) else (str(cell), None)
    if content is None:
        source = table_folder / str(path)
        try:
            check_ordinary(source, _MOST_IMAGE_BYTES)
            content = source.read_bytes()
        except OSError as error:
            raise TaskSetError(f"image {tail(source)} must be a readable file: {error.strerror or error}") from error
    name = f"images/{hashlib.sha256(content).hexdigest()[:16]}{Path(str(path or '.png')).suffix}"
    if not (folder / name).exists():
        write_atomically(folder / name, content)
    return name


def _task(name: str, columns: TaskColumns, found: Sequence[_Found]) -> Task:
    most = max(len(item.options) for _, item in found)
    context = None if columns.context is None else tuple(columns.context)
    return Task(name, tuple(columns.prerequisites), most, columns.description, context=context)


def _in_splits(
    found: dict[str, list[_Found]], mapping: TableMapping, rules: ItemRules
) -> dict[tuple[str, str], list[Placed]]:
    scenes: dict[str, list[Row]] = {}
    for row, item in (pair for pairs in found.values() for pair in pairs):
        scenes.setdefault(item.scene, []).append(row)
    split = split_scenes(scenes, mapping.split, rules.faults)
    rules.faults.raise_any()  # else every task lacks items
    placed = {}
    for name, task in rules.tasks.items():
        for part in SPLITS:
            own = [Placed(row.where, item) for row, item in found[name] if split[item.scene] == part]
            placed[name, part] = rules.well_formed(own)
            rules.check(task, part, placed[name, part])
            if not own:
                rules.faults.add("", f"task {label(name)} has no {part} item; give that split more scenes")
    return placed
