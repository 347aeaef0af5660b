"""What a file or folder holds after its writer was killed or the disk was full: the old content or the new."""

import errno
import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from contextlora.files import (
    beside,
    leftovers,
    put_in_place,
    read_file,
    remove_leftovers,
    replace_folder,
    scratch_folder,
    slug,
    write_atomically,
)

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


def test_only_an_ordinary_file_of_bounded_size_is_read(tmp_path, no_file):
    no_file(tmp_path / "odd")
    with pytest.raises(OSError, match="no ordinary file"):
        read_file(tmp_path / "odd")
    with pytest.raises(OSError, match="null byte"):
        read_file("a\0b")
    (tmp_path / "file").write_bytes(bytes(3 << 20))
    assert read_file(tmp_path / "file", 3 << 20) == bytes(3 << 20)
    with pytest.raises(OSError, match="it holds 3 MiB, may hold at most 2"):
        read_file(tmp_path / "file", 2 << 20)


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


def test_whoever_may_read_the_folder_may_read_its_files(tmp_path):
    """safetensors makes files that only their owner may read."""
    before = os.umask(0o027)
    try:
        with replace_folder(tmp_path / "folder") as scratch:
            for name, mode in (("weights", 0o600), ("script", 0o755)):
                (scratch / name).write_text(name)
                (scratch / name).chmod(mode)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "folder").iterdir()}
    assert modes == {"weights": 0o640, "script": 0o755}


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


def test_what_a_killed_process_left_goes_at_once_and_what_a_live_one_writes_stays(tmp_path):
    for name in ("file", "below/file"):
        write_atomically(tmp_path / name, "old")
        kill_writer(tmp_path / name, 1)
    beside(tmp_path / "below" / "file").write_text("of this process")
    assert [path.parent.name for path in leftovers(tmp_path)] == [tmp_path.name, "below"]
    assert len(leftovers(tmp_path, deep=False)) == 1
    remove_leftovers(tmp_path)
    assert sorted(path.read_text() for path in tmp_path.rglob("*") if path.is_file()) == [
        "of this process",
        "old",
        "old",
    ]


@pytest.mark.parametrize("name", [".a.new-1234abcd", ".a.new", "..a.new.new-12", ".a.new-00000000-1-1234abcd"])
def test_what_does_not_say_whose_it_is_goes_after_a_day(name, tmp_path):
    (tmp_path / name).mkdir()
    remove_leftovers(tmp_path)
    assert (tmp_path / name).exists()
    day_before = time.time() - 86401
    os.utime(tmp_path / name, (day_before, day_before))
    remove_leftovers(tmp_path)
    assert not (tmp_path / name).exists()


def test_what_a_live_process_has_not_touched_for_a_day_goes_as_well(tmp_path):
    (path := beside(tmp_path / "file")).touch()
    os.utime(path, (0, 0))
    remove_leftovers(tmp_path)
    assert not path.exists()


@pytest.mark.parametrize("name", [".gitignore", ".a.newer", "a.new-12", ".a.old-copy", ".new-12"])
def test_other_names_stay(name, tmp_path):
    (tmp_path / name).touch()
    os.utime(tmp_path / name, (0, 0))
    remove_leftovers(tmp_path, unknown_age_s=0.0)
    assert (tmp_path / name).exists()


def test_an_old_folder_whose_successor_never_came_takes_its_place_again(folder):
    kill_writer(folder, 2)
    remove_leftovers(folder.parent)
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]
    assert (folder / "file").read_text() == "old"


def test_the_next_writer_of_a_folder_removes_what_a_killed_one_left(folder):
    kill_writer(folder, 1)
    with replace_folder(folder) as scratch:
        (scratch / "file").write_text("newer")
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


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
