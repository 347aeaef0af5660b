"""What a file or folder holds after its writer was killed or the disk was full: the old content or the new."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from contextlora.files import put_in_place, replace_folder, scratch_folder, slug, write_atomically

# The process ends itself where it would rename for the NUMBER-th time.
KILLED = """\
import os, signal, sys
from pathlib import Path
from contextlora import files
replace, left = os.replace, [int(sys.argv[2])]
def end(*args):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*args)
os.replace = end
path = Path(sys.argv[1])
if path.is_file():
    files.write_atomically(path, "new")
else:
    with files.replace_folder(path) as scratch:
        (scratch / "file").write_text("new")
"""


def kill_writer(path, number):
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path), str(number)], check=False)
    assert ended.returncode == -signal.SIGKILL


@pytest.fixture
def full_disk(monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("content", ["grün", "grün".encode(), memoryview("grün".encode())])
def test_text_and_bytes_are_written_with_the_folders_above(content, tmp_path):
    write_atomically(tmp_path / "a" / "b", content)
    assert (tmp_path / "a" / "b").read_text(encoding="utf-8") == "grün"
    assert len(list((tmp_path / "a").iterdir())) == 1


def test_killed_before_the_rename_a_file_has_its_old_content(tmp_path):
    (tmp_path / "file").write_text("old")
    kill_writer(tmp_path / "file", 1)
    assert (tmp_path / "file").read_text() == "old"
    write_atomically(tmp_path / "file", "newer")  # what the killed one left is not in the way
    assert (tmp_path / "file").read_text() == "newer"


def test_a_full_disk_leaves_the_old_file_and_no_temporary(tmp_path, full_disk):
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


def test_a_folder_takes_the_place_of_another(tmp_path):
    for text in ("old", "new"):
        with replace_folder(tmp_path / "above" / "folder") as scratch:
            (scratch / text).write_text(text)
    assert [path.name for path in (tmp_path / "above").iterdir()] == ["folder"]
    assert [path.name for path in (tmp_path / "above" / "folder").iterdir()] == ["new"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("old")
    return tmp_path / "folder"


def test_killed_before_the_first_rename_a_folder_is_the_old_one(folder):
    kill_writer(folder, 1)
    assert (folder / "file").read_text() == "old"


def test_killed_between_the_renames_the_old_folder_is_still_there(folder):
    kill_writer(folder, 2)
    assert not folder.exists()
    (old,) = folder.parent.glob(".folder.old-*")
    assert (old / "file").read_text() == "old"


def test_a_folder_that_cannot_take_the_place_leaves_the_old_one(folder):
    with scratch_folder(folder) as scratch:
        scratch.rmdir()
        with pytest.raises(FileNotFoundError):
            put_in_place(scratch, folder)
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("file", "old")]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_goes_wrong_in_the_block_leaves_the_old_folder_alone(error, folder):
    with pytest.raises(type(error)), replace_folder(folder) as scratch:
        (scratch / "half").touch()
        raise error
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]
    assert (folder / "file").read_text() == "old"


def test_a_full_disk_at_the_end_leaves_the_old_folder_alone(folder, full_disk):
    with pytest.raises(OSError, match="No space left"), replace_folder(folder) as scratch:
        (scratch / "file").write_text("new")
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]
    assert (folder / "file").read_text() == "old"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("/x/y", "-x-y"),
        ("../..", "-.."),
        ("..", "unnamed"),
        (".", "unnamed"),
        ("", "unnamed"),
        (".hidden", "hidden"),
        ("a\0b\nc\udcff", "a-b-c-"),
        ("Straße 道路", "Straße-道路"),
        ("道" * 300, "道" * 33),
    ],
)
def test_a_foreign_name_is_one_part_of_a_path(tmp_path, name, part):
    assert slug(name) == part
    write_atomically(tmp_path / "below" / f"{slug(name)}-{slug(name)}.json", "")  # the disk takes it
    assert [path.name for path in tmp_path.iterdir()] == ["below"]
