"""Checkpoints appear whole or not at all, and bad ones are refused with a reason."""

import errno
import hashlib
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from contextlora.training.checkpoint import (
    FORMAT,
    KEY,
    AtomicCheckpointIO,
    CheckpointError,
    check_identity,
    load_checkpoint,
    newest_whole,
)
from contextlora.trees import to_bytes

GOOD = {
    KEY: {"format": FORMAT, "answers": {("b", "scene-1", "1"): {"a": "red"}}},
    "state_dict": {"w": torch.arange(3.0)},
}


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(GOOD, target)
    return target


def test_what_is_saved_is_loaded(path):
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    assert loaded[KEY] == GOOD[KEY]
    assert torch.equal(loaded["state_dict"]["w"], torch.arange(3.0))
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def sealed(content):
    return content + b"contextlora-sha256:" + hashlib.sha256(content).digest()


def test_a_header_as_long_as_the_letters_of_a_zip_file_say_is_loaded(path):
    """A safetensors file begins with its header's length: of 0x4B50 bytes, these are the letters PK."""
    length = next(n for n in range(15_000, 19_280) if to_bytes({**GOOD, "name": "a" * n}).startswith(b"PK"))
    AtomicCheckpointIO().save_checkpoint({**GOOD, "name": "a" * length}, path)
    assert AtomicCheckpointIO().load_checkpoint(path)["name"] == "a" * length


def test_a_full_disk_leaves_the_old_checkpoint_and_says_so(path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({KEY: {"format": FORMAT, "answers": {}}}, path)
    assert load_checkpoint(path)[KEY] == GOOD[KEY]


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"", lambda _: b"?"])
def test_a_damaged_checkpoint_is_named(path, damage):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"must be whole: .*last\.ckpt cannot be read") as caught:
        load_checkpoint(path)
    assert str(caught.value).isprintable()  # torch's own words hold escape codes and lines


def test_code_in_a_checkpoint_is_not_run(path, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({KEY: {"format": FORMAT}, "trap": Trap()}, path)
    with pytest.raises(CheckpointError, match=f"must have format {FORMAT}: .* is older"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not (tmp_path / "sprung").exists()


def test_a_foreign_checkpoint_and_another_format_are_told_apart(path, tmp_path):
    path.write_bytes(sealed(to_bytes({"state_dict": {}})))
    with pytest.raises(CheckpointError, match="written by another program"):
        load_checkpoint(path)
    path.write_bytes(sealed(to_bytes({KEY: {"format": FORMAT + 1}})))
    with pytest.raises(CheckpointError, match=f"must have format {FORMAT}"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="there is no"):
        load_checkpoint(tmp_path / "nowhere.ckpt")


def test_a_checkpoint_of_another_backbone_is_refused():
    check_identity({"backbone": "1", "dtype": "x"}, {"backbone": "1"})
    with pytest.raises(CheckpointError, match="the backbone that it was made with: it has 1, here it is 2"):
        check_identity({"backbone": "1"}, {"backbone": "2"})


@pytest.mark.parametrize("value, named", [(Path("/x"), "PosixPath"), (lambda: 0, "function")])
def test_a_callback_s_state_that_could_not_be_read_again_is_not_written(value, named, path):
    state = {"Plain": {"best": 0.5, "seen": [("a", torch.ones(2))]}, "Other": {"seen": value}}
    with pytest.raises(CheckpointError, match=f"and tensors: that of Other: .* got {named}. Turn it into one of these"):
        AtomicCheckpointIO().save_checkpoint(GOOD | {"callbacks": state}, path)
    assert "callbacks" not in load_checkpoint(path)
    AtomicCheckpointIO().save_checkpoint(GOOD | {"callbacks": {"Plain": state["Plain"]}}, path)
    assert load_checkpoint(path)["callbacks"]["Plain"]["best"] == 0.5


@pytest.mark.parametrize("tree", ["{", '{"dict": 5}', '{"dict": [[{"dict": []}, 1]]}', '{"tensor": "7"}', "[" * 10**5])
def test_a_header_that_is_no_tree_is_named_as_damage(tree, path):
    path.write_bytes(sealed(safetensors.torch.save({}, {"tree": tree})))
    with pytest.raises(CheckpointError, match=r"must be whole: .*last\.ckpt cannot be read"):
        load_checkpoint(path)


def test_another_safetensors_file_is_told_apart(path):
    path.write_bytes(sealed(safetensors.torch.save({"w": torch.ones(1)})))
    with pytest.raises(CheckpointError, match=r"must be whole: .* no tree"):
        load_checkpoint(path)


def _saved_twice(folder):
    for number in (1, 2):
        checkpoint = {KEY: {"format": FORMAT, "number": number}, "values": torch.arange(1000)}
        AtomicCheckpointIO().save_checkpoint(checkpoint, folder / "last.ckpt")
    return folder / "last.ckpt"


@pytest.mark.parametrize("harm", ["cut", "empty", "flip", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, harm):
    last, said = _saved_twice(tmp_path), []
    assert newest_whole(last)[1][KEY]["number"] == 2
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "gone":
        last.unlink()
    else:
        last.write_bytes({"cut": content[:-500], "empty": b"", "flip": content}[harm])
    assert newest_whole(last, said.append)[1][KEY]["number"] == 1
    assert len(said) == (harm != "gone")


def test_what_is_no_file_is_named_and_not_the_checkpoint_before(tmp_path, no_file):
    last = _saved_twice(tmp_path)
    no_file(last)
    with pytest.raises(CheckpointError, match=r"ordinary file: .*last\.ckpt is a folder, .* Remove it"):
        newest_whole(last)


def test_two_damaged_checkpoints_say_what_to_do(tmp_path):
    last = _saved_twice(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="begin the run anew"):
        newest_whole(last)
    assert newest_whole(tmp_path / "none" / "last.ckpt") is None
