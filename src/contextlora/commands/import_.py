"""`contextlora import`: makes a task set of tables."""

from importlib import import_module
from pathlib import Path

from contextlora.commands import CONSOLE
from contextlora.errors import UserError, tail
from contextlora.files import slug
from contextlora.limits import check_path
from contextlora.tasks.importers import IMPORTERS
from contextlora.tasks.importers.convert import import_rows
from contextlora.tasks.importers.mapping import read_mapping
from contextlora.tasks.importers.tables import read_tables
from contextlora.tasks.task import SPLITS


def import_(mapping: str, source: list[str], to: str | None = None) -> None:
    """Writes the task set that a mapping file, or an importer of `IMPORTERS`, makes of the sources.

    Raises:
        UserError: something there is wrong, or the folder is taken; nothing is written then.
    """
    check_path(to or "", "--to")
    if mapping in IMPORTERS:
        rows, columns = import_module(f"contextlora.tasks.importers.{mapping}").read(source)
    else:
        columns = read_mapping(mapping)
        rows = read_tables(source)
    folder = Path(to) if to else Path("data") / slug(columns.name)
    if folder.exists():
        raise UserError(
            f"folder {tail(folder)} is there already, and is kept; remove it, or name another folder with --to "
            "(make: TO=...)"
        )
    taskset = import_rows(rows, columns, folder)
    CONSOLE.print(f"task set {taskset.name}: {folder}")
    for task in taskset.graph.tasks:
        counts = ", ".join(f"{len(taskset.items(task, split))} {split}" for split in SPLITS)
        CONSOLE.print(f"  {task}: {counts}")
    CONSOLE.print(f"probe it with: make data-check TASKSET={folder}\ntrain it with: make train TASKSET={folder}")
