"""Words that the bundled model knows, and those that it does not."""

import dataclasses

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from contextlora.backbones.faults import BackboneError
from contextlora.backbones.load import load_tokenizer
from contextlora.backbones.vocabulary import check_vocabulary, reads_sentences, vocabularies
from contextlora.commands.train import print_unknown_words, show_plan
from contextlora.config import load_config
from contextlora.tasks.task import SPLITS, Item, Task
from contextlora.tasks.taskset import TaskSet, write_taskset
from contextlora.tasks.tasksets import resolve_taskset


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("bundled")[0]


def taskset_of(question: str, options: tuple[str, ...]) -> TaskSet:
    def item(scene: str) -> Item:
        return Item(scene, scene, question, options, 0, image_text="sprocket")

    items = {("only", split): [item(f"{split}{number}") for number in range(600)] for split in SPLITS}
    return TaskSet.from_items([Task("only", (), len(options))], items)


def test_the_model_knows_every_word_of_the_shipped_set(tokenizer, tmp_path):
    found = vocabularies(resolve_taskset("iov", tmp_path), tokenizer, "bundled", "text")
    assert {(one.num_unknown, one.num_alike) for one in found} == {(0, 0)} and all(one.num_tokens for one in found)
    check_vocabulary(found, "bundled")


def test_sentences_are_for_tokenizers_that_know_their_words(tokenizer):
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    pieces.train_from_iterator(["some text"], alphabet)
    assert reads_sentences(PreTrainedTokenizerFast(tokenizer_object=pieces)) and not reads_sentences(tokenizer)
    words = Tokenizer(models.WordLevel({"The": 0, "task": 1}))  # takes no others
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert not reads_sentences(PreTrainedTokenizerFast(tokenizer_object=words))


def test_unknown_words_are_counted_and_named(tokenizer):
    # Of 5 + 2 tokens one is unknown, and one more in the text view.
    taskset = taskset_of("route route route gasket ?", ("main", "bridge"))
    [seen], [read] = (vocabularies(taskset, tokenizer, "bundled", image) for image in ("image", "text"))
    assert (seen.num_items, seen.num_tokens, seen.num_unknown) == (300, 2100, 300)
    assert seen.examples == ("gasket",) and seen.unknown_share == pytest.approx(1 / 7)
    assert read.num_unknown == 600 and read.examples == ("gasket", "sprocket")
    with pytest.raises(BackboneError, match=r"14.3 % are .*gasket.*MODEL=smollm2-135m.*answer_format=letter"):
        check_vocabulary([seen], "bundled")
    check_vocabulary([dataclasses.replace(seen, num_tokens=6000)], "bundled")


def test_options_that_become_the_same_tokens_are_named(tokenizer, capsys):
    [found] = vocabularies(taskset_of("route ?", ("flange", "main", "gasket")), tokenizer, "bundled", "image")
    assert found.num_alike == found.num_items and found.alike == ("flange", "gasket")
    print_unknown_words([found])
    assert "300 of 300 items with options that look alike (['flange', 'gasket'])" in capsys.readouterr().out


def test_a_dry_run_refuses_them(tmp_path):
    taskset = taskset_of("which gasket of the sprocket leaks ?", ("main", "bridge"))
    write_taskset(tmp_path, "gaskets", taskset.tasks.values(), taskset.splits)
    with pytest.raises(BackboneError, match="smollm2-135m"):
        show_plan(load_config([f"taskset={tmp_path}"]))
