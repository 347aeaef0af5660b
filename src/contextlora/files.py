"""Files and folders that are replaced whole or not at all, also through a kill, a full disk or a power cut."""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MAX_SLUG_BYTES = 100  # file systems take 255, two slugs may make one name


def slug(name: str) -> str:
    """A name that somebody else chose as one part of a path: never a folder above, hidden, or too long for a disk."""
    plain = re.sub(r"[^\w.-]+", "-", name).lstrip(".")
    return plain.encode()[:MAX_SLUG_BYTES].decode(errors="ignore") or "unnamed"


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """Gives a file new content in one step, and makes the folders above it; text is written as UTF-8.

    Raises:
        OSError: the disk is full, or the like; the old content is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "new")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the new name with nothing in it
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)  # the rename itself


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yields an empty scratch folder that takes the place of `path` where the block ends well, and goes otherwise."""
    with scratch_folder(path) as scratch:
        yield scratch
        put_in_place(scratch, path)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path`, which goes with the block unless `put_in_place` has moved it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = _beside(path, "new")
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def put_in_place(scratch: Path, path: Path) -> None:
    """Makes a folder that is whole the one at `path`; a folder that lies there goes last, when nothing can fail."""
    for file in scratch.rglob("*"):
        _sync(file)
    old = _beside(path, "old")
    # A folder that is not empty cannot be replaced by a rename: the old one steps aside.
    with suppress(FileNotFoundError):  # nothing to replace
        os.replace(path, old)
    try:
        os.replace(scratch, path)
    except OSError:
        if old.exists():
            os.replace(old, path)
        raise
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path, what: str) -> Path:
    """A name that is free: other processes, also on other machines, may replace the same file."""
    # In the same folder, since a rename is one step within one file system only.
    return path.with_name(f".{path.name}.{what}-{secrets.token_hex(4)}")


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed process left half written below a folder that no other process works on."""
    for path in [*folder.rglob(".*.new*"), *folder.rglob(".*.old-*")]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
