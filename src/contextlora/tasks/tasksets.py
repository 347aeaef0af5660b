"""The shipped task sets, generated on first use, and the way from a configured name to a `TaskSet`."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from contextlora.errors import first_line, suggestion, tail
from contextlora.files import put_in_place, remove_leftovers, scratch_folder, write_atomically
from contextlora.settings import TasksetConfig
from contextlora.tasks.faults import TaskSetError, shown
from contextlora.tasks.generators import iov
from contextlora.tasks.reading import read_bytes
from contextlora.tasks.taskset import DESCRIPTION_FILE, TaskSet

# Raise it when any generator or renderer writes something else for the same seed: older folders are then made anew.
GENERATOR_VERSION = 1
TASKSETS: dict[str, Callable[[Path, int, Mapping[str, int]], None]] = {"iov": iov.build}
REGIMES = {  # scenes in each split
    "low": {"train": 400, "validation": 200, "test": 500},
    "full": {"train": 4000, "validation": 500, "test": 1000},
}
_MANIFEST = "manifest.json"
_MOST_MANIFEST_BYTES = 1 << 20


def load_taskset(chosen: TasksetConfig) -> TaskSet:
    """The configured task set, generated where it is not there yet; raises as `resolve_taskset`."""
    taskset = resolve_taskset(chosen.name, chosen.data_dir, chosen.seed, chosen.regime)
    return taskset.with_train_items(chosen.train_items)


def resolve_taskset(name_or_folder: str, data_dir: str | Path = "data", seed: int = 0, regime: str = "low") -> TaskSet:
    """Loads a task set by name (generated where it is not there yet) or from a folder of the user's.

    Args:
        name_or_folder: a key of `TASKSETS`, or a folder with a `taskset.yaml`.
        data_dir: generated sets go to `<data_dir>/<name>/<regime>-<seed>`.
        seed: of the generator, 0 or more.
        regime: a key of `REGIMES`.

    Raises:
        TaskSetError: unknown name or regime, or the folder cannot be written or breaks the format.
    """
    if name_or_folder in TASKSETS:
        return TaskSet.load(_generated(name_or_folder, Path(data_dir), seed, regime))
    try:
        if (Path(name_or_folder) / DESCRIPTION_FILE).exists():
            return TaskSet.load(name_or_folder)
        if Path(name_or_folder).is_dir():
            raise TaskSetError(f"task set folder {tail(name_or_folder)} holds no {DESCRIPTION_FILE}; add it")
    except OSError as error:  # a name too long, a folder that may not be read
        reason = error.strerror or first_line(error)
        raise TaskSetError(f"task set {tail(name_or_folder)} cannot be read: {reason}; give another path") from error
    raise TaskSetError(
        f"taskset must be one of {', '.join(TASKSETS)} or a folder with a {DESCRIPTION_FILE}, "
        f"got {shown(name_or_folder)}{suggestion(name_or_folder, TASKSETS)}"
    )


def _generated(name: str, data_dir: Path, seed: int, regime: str) -> Path:
    if regime not in REGIMES:
        raise TaskSetError(f"taskset regime must be one of {', '.join(REGIMES)}, got {shown(regime)}")
    if seed < 0:
        raise TaskSetError(f"taskset seed must be 0 or more, got {seed}")
    folder = data_dir / name / f"{regime}-{seed}"
    manifest = {"generator_version": GENERATOR_VERSION, "seed": seed, "scenes": REGIMES[regime]}
    remove_leftovers(folder.parent, deep=False)
    if _is_current(folder, manifest):
        return folder
    try:
        with scratch_folder(folder) as unfinished:
            TASKSETS[name](unfinished, seed, REGIMES[regime])
            write_atomically(unfinished / _MANIFEST, json.dumps(manifest, indent=2) + "\n")
            if not _is_current(folder, manifest):  # or another process was faster, and may be reading it
                put_in_place(unfinished, folder)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise TaskSetError(
            f"cannot write task set {name} to {tail(folder)}: {reason}; set taskset.data_dir to another folder"
        ) from error
    return folder


def _is_current(folder: Path, manifest: Mapping[str, object]) -> bool:
    try:
        return json.loads(read_bytes(folder / _MANIFEST, _MOST_MANIFEST_BYTES)) == manifest
    except (OSError, ValueError, RecursionError):  # not there, or damaged: made anew
        return False
