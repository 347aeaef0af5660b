"""A small task set written by hand: b needs a; three items a split; item 1 of each split has an image."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from contextlora.tasks.task import SPLITS, Item, Task
from contextlora.tasks.taskset import write_taskset

COLOURS = ("red", "green", "blue")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "one.png")
    items = {("a", split): [_item("a", split, index) for index in range(3)] for split in SPLITS}
    items |= {("b", split): [_item("b", split, index) for index in range(3)] for split in SPLITS}
    rule = {(colour,): colour for colour in COLOURS}
    write_taskset(tmp_path, "small", [Task("a", (), 3, "what?"), Task("b", ("a",), 3, "and?", rule)], items)
    return tmp_path


def _item(task: str, split: str, index: int) -> Item:
    return Item(
        id=f"{task}{index}",
        scene=f"{split}{index}",
        question=f"colour {index} in {split} . {task} ?",
        options=COLOURS,
        answer=index,
        image="images/one.png" if index == 1 else None,
        image_text="camera : empty ." if index == 1 else None,
        prerequisites={"a": COLOURS[index]} if task == "b" else {},
        fields={"number": str(index)},
    )


@pytest.fixture
def edit(folder: Path) -> Callable[[str, str, str], Path]:
    """(file, old, new) -> the folder with the first occurrence of a text replaced in one of its files."""

    def replace(file: str, old: str, new: str) -> Path:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))
        return folder

    return replace
