"""The folder that a command works in: as it was before each input, and watched for what is written."""

import os
import shutil
from pathlib import Path

Snapshot = dict[str, tuple]


def snapshot(folder: Path) -> Snapshot:
    """Path within the folder -> what tells one state of it from another; links are not followed."""
    found: Snapshot = {}
    pending = [""]
    while pending:
        inside = pending.pop()
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                status, name = entry.stat(follow_symlinks=False), os.path.join(inside, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    found[name] = (status.st_mode, status.st_ino)  # its time changes with what is in it
                    pending.append(name)
                else:
                    found[name] = (status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def changed(before: Snapshot, after: Snapshot) -> list[str]:
    """Paths that are new, gone or different."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


class Box:
    """A copy of a prepared folder, that can be made as new.

    Attributes:
        root: what is watched.
        cwd: of the commands, with all that inputs change.
    """

    def __init__(self, prepared: Path, root: Path) -> None:
        self.prepared, self.root, self.cwd = prepared, root, root / "cwd"
        shutil.copytree(prepared, root, symlinks=True)
        self.clean = snapshot(root)

    def restore(self) -> None:
        """Puts back what an input or a command has changed."""
        different = changed(self.clean, snapshot(self.root))
        for name in different:
            path = self.root / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for name in different:  # sorted: a folder before what is in it
            source, path = self.prepared / name, self.root / name
            if os.path.lexists(path):
                continue
            if source.is_dir() and not source.is_symlink():
                shutil.copytree(source, path, symlinks=True)
            elif os.path.lexists(source):
                shutil.copy2(source, path, follow_symlinks=False)
        if different:
            self.clean = snapshot(self.root)

    def outside(self, before: Snapshot, allowed: tuple[str, ...]) -> list[str]:
        """What has changed since `before` outside of folders in the working directory."""
        folders = tuple(f"cwd/{name}" for name in allowed)
        return [
            name
            for name in changed(before, snapshot(self.root))
            if not any(name == folder or name.startswith(f"{folder}/") for folder in folders)
        ]
