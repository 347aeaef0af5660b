"""Files and folders that are replaced whole or not at all, also through a kill, a full disk or a power cut."""

import errno
import os
import re
import secrets
import shutil
import socket
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MAX_SLUG_BYTES = 100  # file systems take 255, two slugs may make one name
DAY_S = 86400.0
# What `beside` gives, and what older versions gave: without host and process, or under quite other names.
_SCRATCH = re.compile(
    r"\.(?P<name>.+)\.(?P<what>new|old)(-((?P<host>[0-9a-f]{8})-(?P<pid>\d+)-)?[0-9a-f]+)?"
    r"|\.(low|full)-\d+(-old)?-[a-z0-9_]{8}|(status\.json|results\.json|config\.yaml|.+\.ckpt|.+\.safetensors)\.tmp"
)


def slug(name: str) -> str:
    """A name that somebody else chose as one part of a path: never a folder above, hidden, or too long for a disk."""
    plain = re.sub(r"[^\w.-]+", "-", name).lstrip(".")
    return plain.encode()[:MAX_SLUG_BYTES].decode(errors="ignore") or "unnamed"


def read_file(path: str | Path, most: int = 1 << 31) -> bytes:
    """A file's content; every file that a user may name is read by it, or after `check_ordinary`.

    Raises:
        OSError: as `check_ordinary`.
    """
    check_ordinary(path, most)
    return Path(path).read_bytes()


def check_ordinary(path: str | Path, most: int | None = None) -> None:
    """Raises `OSError` for what cannot be found, holds more than `most` bytes, or would never end."""
    try:
        status = os.stat(path)
    except ValueError as error:  # NUL in the path
        raise OSError(errno.EINVAL, str(error)) from error
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever, a device may have no end
        raise OSError(errno.EINVAL, "it is no ordinary file but a folder, a pipe or a device")
    if most is not None and status.st_size > most:
        raise OSError(errno.EINVAL, f"it holds {status.st_size >> 20} MiB, may hold at most {most >> 20}")


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """Gives a file new content in one step, and makes the folders above it; text is written as UTF-8.

    Raises:
        OSError: the disk is full, or the like; the old content is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path, "new")
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
    remove_leftovers(path.parent, deep=False)
    scratch = beside(path, "new")
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def put_in_place(scratch: Path, path: Path) -> None:
    """Makes a folder that is whole the one at `path`; a folder that lies there goes last, when nothing can fail."""
    readers = scratch.stat().st_mode & 0o666  # as the umask has it
    for file in scratch.rglob("*"):
        if file.is_file():
            file.chmod(file.stat().st_mode | readers)  # safetensors writes files that nobody else may read
        _sync(file)
    old = beside(path, "old")
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


def beside(path: Path, what: str = "new") -> Path:
    """A name that is free, and that says whose it is: other processes and machines may replace the same file."""
    # In the same folder, since a rename is one step within one file system only.
    return path.with_name(f".{path.name}.{what}-{_host()}-{os.getpid()}-{secrets.token_hex(4)}")


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def leftovers(folder: Path, *, deep: bool = True, unknown_age_s: float = DAY_S) -> list[Path]:
    """What killed processes left half written in a folder.

    Args:
        folder: where to look; links are not followed.
        deep: also in the folders below.
        unknown_age_s: how long nothing has moved in what does not say whose it is, or names another machine's process;
            a live process's is left over after a day, as its number may be a later process's.
    """
    found: list[Path] = []
    for root, folders, names in os.walk(folder):
        for name in sorted([*folders, *names]):
            if (match := _SCRATCH.fullmatch(name)) and _is_left(path := Path(root, name), match, unknown_age_s):
                found.append(path)
        folders[:] = [name for name in folders if deep and not _SCRATCH.fullmatch(name)]
    return found


def _is_left(path: Path, scratch: re.Match[str], unknown_age_s: float) -> bool:
    try:
        age_s = time.time() - path.lstat().st_mtime
    except OSError:  # just gone
        return False
    if scratch["host"] != _host():
        return age_s >= unknown_age_s
    try:
        os.kill(int(scratch["pid"]), 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # another user's, alive
        pass
    return age_s >= DAY_S


def remove_leftovers(folder: Path, *, deep: bool = True, unknown_age_s: float = DAY_S) -> None:
    """Removes what `leftovers` finds; an old folder whose successor never came takes its place again."""
    for path in leftovers(folder, deep=deep, unknown_age_s=unknown_age_s):
        remove_leftover(path)


def remove_leftover(path: Path) -> None:
    """Removes one; where that fails it stays, since whoever finds it has other things to do."""
    scratch = _SCRATCH.fullmatch(path.name)
    assert scratch is not None, path
    with suppress(OSError):
        if scratch["what"] == "old" and not (original := path.with_name(scratch["name"])).exists():
            os.replace(path, original)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
