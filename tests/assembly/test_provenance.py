"""The fingerprint of a task set covers what trains, and not the test split."""

from dataclasses import replace

from PIL import Image

from contextlora.assembly.provenance import taskset_fingerprint
from contextlora.tasks.task import SPLITS, Item, Task
from contextlora.tasks.taskset import TaskSet


def test_template_and_image_contents_count_but_the_test_split_does_not(tmp_path):
    Image.new("L", (4, 4), 1).save(tmp_path / "a.png")
    items = {("t", split): [Item(split, split, "q", ("x", "y"), 0, image="a.png")] for split in SPLITS}
    made = TaskSet.from_items([Task("t", (), 2)], items, folder=tmp_path)
    before = taskset_fingerprint(made)
    assert taskset_fingerprint(replace(made, template=made.template + " :")) != before
    mended = {**made.splits, ("t", "test"): (Item("n", "n", "other", ("x", "y"), 1),)}
    assert taskset_fingerprint(replace(made, splits=mended)) == before
    Image.new("L", (4, 4), 2).save(tmp_path / "a.png")
    assert taskset_fingerprint(made) != before
