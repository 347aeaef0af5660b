"""What a run is made of covers all that trains, and not the test split or where it runs."""

import json
import shutil
from dataclasses import replace

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from contextlora.assembly.build import build_data
from contextlora.assembly.provenance import identity, taskset_fingerprint
from contextlora.tasks.prompts import DEFAULT_TEMPLATE
from contextlora.tasks.task import SPLITS, Item, Task
from contextlora.tasks.taskset import TaskSet


def test_template_and_image_contents_count_but_the_test_split_does_not(tmp_path):
    Image.new("L", (4, 4), 1).save(tmp_path / "a.png")
    items = {("t", split): [Item(split, split, "q", ("x", "y"), 0, image="a.png")] for split in SPLITS}
    made = TaskSet.from_items([Task("t", (), 2)], items, folder=tmp_path)
    before = taskset_fingerprint(made)
    assert taskset_fingerprint(replace(made, template=DEFAULT_TEMPLATE + " :")) != before
    for words in ({"template": "{question} {options}"}, {"as_context": "{answer}"}):
        assert taskset_fingerprint(replace(made, tasks={"t": replace(made.tasks["t"], **words)})) != before
    assert taskset_fingerprint(replace(made, as_context="{answer}")) != before
    mended = {**made.splits, ("t", "test"): (Item("n", "n", "other", ("x", "y"), 1),)}
    assert taskset_fingerprint(replace(made, splits=mended)) == before
    Image.new("L", (4, 4), 2).save(tmp_path / "a.png")
    assert taskset_fingerprint(made) != before


def test_which_items_of_a_scene_belong_together_counts(paired_folder):
    made = TaskSet.load(paired_folder)
    first, second, *others = made.items("d", "train")
    swapped = (replace(first, parents=second.parents), replace(second, parents=first.parents), *others)
    assert taskset_fingerprint(replace(made, splits={**made.splits, ("d", "train"): swapped})) != taskset_fingerprint(
        made
    )


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


def change_one_weight(folder):
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("mlp.down_proj.weight"))
    weights[name].view(-1)[-1] += 1  # few of the values go into the backbone's fingerprint as they are
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def swap_words(folder):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    words["red"], words["blue"] = words["blue"], words["red"]
    path.write_text(json.dumps(content))


def add_template(folder):
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }} answer{% endfor %}")


def shift_pixels(folder):
    (path,) = (one for one in folder.glob("*processor_config.json") if "image_mean" in one.read_text())
    path.write_text(path.read_text().replace("0.48145466", "0.5"))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (change_one_weight, "base weights"),
        (swap_words, "tokenizer"),
        (add_template, "chat template"),
        (shift_pixels, "image processor"),
    ],
)
def test_what_makes_the_inputs_of_a_model_counts(change, part, make_config, other_model_folder):
    folder = other_model_folder("llava")
    config = make_config(f"model={folder}")
    before = identity(config, build_data(config))
    assert identity(config, build_data(config)) == before
    change(folder)
    after = identity(config, build_data(config))
    assert {key for key in after if after[key] != before[key]} == {part}


def test_a_chat_template_that_is_not_used_does_not_count(make_config, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    config = make_config(f"model={tmp_path / 'model'}", "model.chat_template=off")
    before = identity(config, build_data(config))
    add_template(tmp_path / "model")
    assert identity(config, build_data(config)) == before
