"""Figures of a task set, on items small enough to count by hand."""

import pytest
from transformers import AutoTokenizer

from contextlora.backbones.faults import BackboneError
from contextlora.evaluation.statistics import Spread, shared_scenes, task_statistics, token_lengths
from contextlora.tasks.prompts import Prompt
from contextlora.tasks.task import Item, Task
from contextlora.tasks.taskset import TaskSet


def items(split: str, answers: str, *options: str) -> list[Item]:
    """One for each letter of `answers`, which is its right option."""
    return [
        Item(f"{split}{n}", f"{split}{n}", "which ?", tuple(options), options.index(answer))
        for n, answer in enumerate(answers)
    ]


def test_baselines_are_learned_in_train_and_counted_on_test():
    # x is right 4 times of 8 that it is offered, y 3 of 4, z 1 of 4: the most frequent is not the most popular.
    train = [*items("train", "xxxz", "x", "z"), *items("more", "yyyx", "x", "y")]
    found = {("t", "train"): train, ("t", "validation"): items("validation", "x", "x", "y", "z")}
    found["t", "test"] = items("test", "xyyy", "x", "y")
    made = task_statistics(TaskSet.from_items([Task("t", (), 3)], found), "t")
    assert made.num_items == {"train": 8, "validation": 1, "test": 4}
    assert (made.fewest_options, made.most_options, made.chance) == (2, 3, 0.5)
    assert (made.majority, made.popularity) == (0.25, 0.75)


def test_scenes_are_shared_by_name():
    found = {("a", split): items(split, "xyx", "x", "y") for split in ("train", "validation", "test")}
    found |= {("b", split): items(split, "xyxyx", "x", "y") for split in ("train", "validation")}
    found["b", "test"] = items("other", "xy", "x", "y")
    taskset = TaskSet.from_items([Task("a", (), 2), Task("b", ("a",), 2)], found)
    assert shared_scenes(taskset, "a", "b") == {"train": 3, "validation": 3, "test": 0}


def test_a_spread_is_made_of_its_numbers():
    assert Spread.of([7]) == Spread(7, 7, 7)
    assert Spread.of(range(1, 101)) == Spread(50, 95, 100)
    assert Spread.of([3, 1, 2]) == Spread(2, 3, 3)


def test_tokens_are_counted_as_the_model_reads_them(model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    prompts = [
        Prompt("t", "sees p q . answer :", None, ("red", "red blue"), 0),
        Prompt("t", "sees p :", None, ("p",), 0),
    ]
    assert token_lengths(prompts, tokenizer, "m", True, False) == (Spread(3, 6, 6), Spread(1, 2, 2))
    for takes_images, content in ((False, "m.content"), (True, "m.content[0].text")):
        tokenizer.chat_template = "{% for m in messages %}red {{ " + content + " }} blue{% endfor %}"
        lengths = token_lengths(prompts, tokenizer, "m", True, takes_images)
        assert lengths == (Spread(5, 8, 8), Spread(1, 2, 2))
        assert token_lengths(prompts, tokenizer, "m", False, takes_images)[0] == Spread(3, 6, 6)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(BackboneError, match="chat template"):
        token_lengths(prompts, tokenizer, "m", True, False)
