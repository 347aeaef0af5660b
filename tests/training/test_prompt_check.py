"""What is found in the items before a run's first step: every one that training or evaluation would stop at."""

import json
import shutil

import pytest

from contextlora.assembly.build import build_data
from contextlora.backbones.faults import BackboneError
from contextlora.backbones.scoring import option_scores
from contextlora.training.prompt_check import check_prompts

LONG = "sees " + "p " * 80 + ". a ?"
WORDY = [f"{letter} q r s p q r s p q" for letter in "pqr"]

# Whose right answers need not be those that a's items are given here.
FREE = dict.fromkeys(("train/c.jsonl", "train/d.jsonl"), lambda _, item: item.update(prerequisites={}))


@pytest.fixture
def check(taskset_folder, tmp_path, make_config):
    """({file: change(number, item)}, settings ...) -> checks the tiny set with its items changed; returns its data."""

    def run(changes, *settings, max_items=None):
        folder = tmp_path / "tasks"
        shutil.copytree(taskset_folder, folder, dirs_exist_ok=True)
        for name, change in changes.items():
            items = [json.loads(line) for line in (folder / name).read_text().splitlines()]
            for number, item in enumerate(items):
                change(number, item)
            (folder / name).write_text("".join(json.dumps(item) + "\n" for item in items))
        data = build_data(make_config(f"taskset={folder}", *settings))
        check_prompts(data, max_items)
        return data

    return run


def question(number, text):
    return lambda n, item: item.update(question=text) if n == number else None


def test_validation_reads_every_item_however_few_are_evaluated(check):
    with pytest.raises(BackboneError, match=r"^validation/d\.jsonl:6: a prompt takes "):
        check({"validation/d.jsonl": question(5, LONG)}, max_items=2)


def test_a_test_item_counts_where_it_is_evaluated_or_asked_for(check, taskset):
    check({"test/a.jsonl": question(5, LONG)}, max_items=2)
    scene = taskset.items("d", "test")[0].scene

    def last(n, item):  # the item of a first scene as the last one of its file
        if n == 0:
            item.update(scene="test-11", id="test-11")
        elif n == 11:
            item.update(scene=scene, id="test-0", question=LONG)

    with pytest.raises(BackboneError, match=r"^test/a\.jsonl:12: "):
        check({"test/a.jsonl": last}, "taskset.context=none", max_items=2)


def test_of_the_answers_in_a_prompt_the_one_of_most_tokens_counts(check):
    options = ["x" * 100, " ".join("pqrs" * 10)]
    with pytest.raises(BackboneError, match=r"^train/c\.jsonl:1: a prompt takes "):
        check(
            {"train/a.jsonl": lambda _, item: item.update(options=options, answer=0)} | FREE,
            "taskset.answer_format=letter",
        )


def mixed(n, item):
    """One item of a long prompt and one of long options."""
    if n == 0:
        item["question"] = "sees " + "p " * 44 + ". a ?"
    if n == 1:
        item.update(options=WORDY, answer=0)


@pytest.mark.parametrize("batch_size", [1, 128])
def test_a_long_prompt_and_a_long_option_of_two_items_fit_where_each_alone_does(check, batch_size):
    data = check({"train/a.jsonl": mixed} | FREE, "taskset.context=none", f"evaluation.batch_size={batch_size}")
    items = data.taskset.items("a", "train")[:2]
    batch = data.encode_items("a", items, [{}, {}])
    assert batch.inputs["input_ids"].shape[1] + batch.option_ids.shape[2] - 1 > 64
    assert option_scores(data.backbone.model, batch).isfinite().all()


@pytest.mark.parametrize("batch_size", [1, 128])
def test_where_padding_counts_the_two_are_named(check, batch_size, monkeypatch):
    monkeypatch.setattr("contextlora.backbones.readable.counts_padding", lambda _: True)
    with pytest.raises(BackboneError, match=r"^train/a\.jsonl:1 with train/a\.jsonl:2: "):
        check({"train/a.jsonl": mixed} | FREE, "taskset.context=none", f"evaluation.batch_size={batch_size}")
