"""What a run is made of covers all that trains, and not the test split or where it runs."""

from dataclasses import replace

import pytest
from PIL import Image

from contextlora.assembly.build import build_data
from contextlora.assembly.provenance import identity, taskset_fingerprint
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


CALLBACKS = "[{class_path: lightning.pytorch.callbacks.GradientAccumulationScheduler, init_args: {scheduling: {0: 4}}}]"


@pytest.mark.parametrize(
    ("setting", "counts"),
    [
        ("training.trainer={gradient_clip_algorithm: value}", True),
        (f"training.callbacks={CALLBACKS}", True),
        ("training.learning_rate=0.1", True),
        ("seed=1", True),
        ("training.loggers=[lightning.pytorch.loggers.CSVLogger]", False),
        ("training.progress=true", False),
        ("training.accelerator=cpu", False),
    ],
)
def test_settings_that_change_training_count(setting, counts, make_config):
    config = make_config()
    data = build_data(config)
    assert (identity(make_config(setting), data) != identity(config, data)) is counts
