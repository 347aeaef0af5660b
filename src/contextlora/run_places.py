"""What several processes share about runs: who holds a run, which one began last, and which one finished last."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from contextlora.errors import UserError, tail
from contextlora.files import beside, read_file, slug, write_atomically

MARKER = ".runs"  # lies in every folder of runs: one that is only three levels above a copied run has none
_ORDER = ".order"
_held: dict[tuple[int, int], int] = {}  # folder's device and number -> descriptor of its lock


def hold(folder: Path) -> bool:
    """Takes a run's lock for as long as this process lives; False where another process has it."""
    key = _key(folder)
    if key in _held:
        return True
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError:  # a file system without locks: the status file alone must do
        os.close(descriptor)
        return True
    _held[key] = descriptor
    return True


def release(folder: Path) -> None:
    """Gives a run's lock back, if this process has it."""
    with suppress(OSError):
        os.close(_held.pop(_key(folder), -1))


def _key(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def order_of(folder: Path) -> int:
    """How many runs had begun before it, as far as they are still there; 0 for a run of an older version."""
    try:
        return int(read_file(folder / _ORDER))
    except (OSError, ValueError):
        return 0


def enter(runs_dir: Path, folder: Path) -> None:
    """Makes a run the one that began last, whatever the clock says."""
    (runs_dir / MARKER).touch()
    newest = max((order_of(path.parent) for path in runs_dir.glob(f"*/*/*/{_ORDER}")), default=0)
    (folder / _ORDER).write_text(f"{newest + 1}\n", encoding="ascii")


def place_of_runs(runs_dir: Path, taskset: str, method: str) -> Path:
    """Where the runs of a task set and a method lie.

    Raises:
        UserError: the task set has the name of the link to the newest run.
    """
    name = slug(Path(taskset).resolve().name)  # resolved, as a path like `.` has no name
    if name == "latest":
        raise UserError(f"a task set's folder must not be named latest, got {tail(taskset)}; rename it")
    return runs_dir / name / slug(method)


def point_latest(folder: Path) -> None:
    """Points `latest` of the folder of runs at a run; a text file where links are impossible."""
    if len(folder.parents) < 3 or not (folder.parents[2] / MARKER).exists():
        return  # a run that was copied out of its folder of runs
    runs_dir = folder.parents[2]
    target, temporary = folder.relative_to(runs_dir), beside(runs_dir / "latest")
    try:
        temporary.symlink_to(target)  # relative: the folder of runs may move
        # A link is replaced in one step; deleted and made anew it would be missing in between.
        os.replace(temporary, runs_dir / "latest")
    except OSError:
        # A run that is finished must not fail for a convenience.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        with suppress(OSError):
            write_atomically(runs_dir / "latest", f"{target}\n")


def latest_path(runs_dir: Path) -> Path | None:
    """Where `latest` points, if there is a run."""
    link = runs_dir / "latest"
    try:
        path = runs_dir / link.read_text(encoding="utf-8").strip() if link.is_file() else link
        return path if (path / "config.yaml").is_file() else None
    except (OSError, ValueError):
        return None
