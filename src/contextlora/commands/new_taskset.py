"""`contextlora new-taskset`: writes a small task set to start one's own from."""

from pathlib import Path

from contextlora.commands import CONSOLE
from contextlora.errors import UserError, tail
from contextlora.limits import check_path
from contextlora.tasks.example import write_example


def new_taskset(name: str) -> None:
    """Writes an example with every key explained into the folder `name`.

    Raises:
        UserError: the folder is taken.
    """
    check_path(name, "NAME")
    folder = Path(name)
    if folder.exists():
        raise UserError(f"folder {tail(folder)} is there already, and is kept; name another one")
    write_example(folder)
    CONSOLE.print(
        f"task set: {folder}; its taskset.yaml explains every key\ntrain it with: make train TASKSET={folder}"
    )
