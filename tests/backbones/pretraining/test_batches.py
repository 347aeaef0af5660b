"""Pretraining documents: labels tell the truth, held-out wordings stay out, a seed fixes everything."""

from itertools import pairwise
from random import Random

import numpy as np
import pytest
import torch

from contextlora.backbones.pretraining import text_skills, wordings
from contextlora.backbones.pretraining.batches import NUM_PATCHES, make_batch
from contextlora.backbones.pretraining.vocabulary import IMAGE, UNKNOWN, WORDS

SHAPE = {"num_image_rows": 6, "num_text_rows": 6, "length": 96}


def words_of(row: torch.Tensor) -> list[str]:
    return [WORDS[index] for index in row.tolist()]


def test_a_seed_fixes_the_batch():
    first, second, other = make_batch(3, **SHAPE), make_batch(3, **SHAPE), make_batch(4, **SHAPE)
    assert torch.equal(first.input_ids, second.input_ids) and torch.equal(first.pixels, second.pixels)
    assert torch.equal(first.labels, second.labels) and not torch.equal(first.input_ids, other.input_ids)


def test_image_rows_begin_with_their_patches():
    batch = make_batch(0, **SHAPE)
    image = WORDS.index(IMAGE)
    assert (batch.input_ids[:6, :NUM_PATCHES] == image).all()
    assert not (batch.input_ids[:6, NUM_PATCHES:] == image).any() and not (batch.input_ids[6:] == image).any()
    assert batch.pixels.shape == (6, 3, 64, 64) and batch.pixels.dtype == torch.uint8


def test_every_word_is_known():
    assert not any((make_batch(seed, **SHAPE).input_ids == WORDS.index(UNKNOWN)).any() for seed in range(20))


@pytest.mark.parametrize("seed", range(5))
def test_answers_follow_their_question_and_options_hold_the_answer(seed):
    batch = make_batch(seed, **SHAPE)
    for row, position, _, form in batch.asked:
        words = words_of(batch.input_ids[row])
        assert words[position - 1 : position + 1] == ["answer", ":"]
        answer = WORDS[batch.labels[row, position]]
        assert words[position + 1] == answer
        if form != "open":
            start = len(words[:position]) - words[:position][::-1].index("options")
            options = " ".join(words[start + 1 : position - 2]).split(" , ")
            named = [option.split()[0] for option in options]
            assert answer in named
            true_word = WORDS[batch.labels[row, start]]  # the colon before the options predicts the word itself
            assert true_word == (answer if form == "words" else dict(o.split() for o in options)[answer])


def test_lookups_can_be_answered_from_the_text():
    """An independent reader of the `key value` lines finds every looked-up answer in the row."""
    found = 0
    for seed in range(40):
        batch = make_batch(seed, **SHAPE)
        for row, position, skill, form in batch.asked:
            if skill in ("lookup", "read", "two_hop") and form == "open":
                words = words_of(batch.input_ids[row])
                first_question = words.index("?")
                assert words[position + 1] in words[:first_question]
                found += 1
    assert found > 50


def test_held_out_wordings_never_occur_in_training():
    for skill, phrases in wordings.HELD_OUT.items():
        assert phrases and not set(phrases) & set(wordings.TRAIN[skill])


def test_counts_agree_with_the_drawn_pixels():
    """Images of more objects differ from the bare ground in more pixels: label and picture belong together."""
    counts, painted = [], []
    for seed in range(60):
        batch = make_batch(seed, num_image_rows=4, num_text_rows=0, length=96)
        for row, position, skill, _ in batch.asked:
            words = words_of(batch.input_ids[row])
            if skill == "count" and "things" in words[position - 25 : position] and words[position + 1].isdigit():
                counts.append(int(words[position + 1]))
                painted.append(batch.pixels[row].float().std().item())
    assert len(counts) > 20 and np.corrcoef(counts, painted)[0, 1] > 0.2


def test_hints_are_the_values_that_the_text_names():
    """At a key of a comparison the model must predict its value, which the `key value` lines say."""
    found = 0
    for seed in range(20):
        batch = make_batch(seed, **SHAPE)
        for row, position, skill, form in batch.asked:
            if skill not in ("compare", "level") or form != "open":
                continue
            words = words_of(batch.input_ids[row])
            said = words[: words.index("?")]
            values = {key: value for key, value in pairwise(said) if value.isdigit() and not key.isdigit()}
            mark = position - 2  # the question mark
            if "." not in words[:mark]:
                continue  # bare numbers, the first question of the row
            start = mark - words[:mark][::-1].index(".")
            for place in range(start, mark):
                hinted = batch.labels[row, place]
                if hinted >= 0:
                    assert WORDS[hinted] == values[words[place]]
                    found += 1
    assert found > 50


def test_a_patch_predicts_which_of_its_kind_it_shows():
    numbers = set()
    for seed in range(10):
        batch = make_batch(seed, **SHAPE)
        labels, shown = batch.labels[:6, :NUM_PATCHES], batch.patch_labels
        for row in range(6):
            if (labels[row] < 0).all():
                continue  # a spectrogram, whose tones are no things
            for cell, label in enumerate(labels[row].tolist()):
                kind = shown[row, cell]
                if kind == 0:
                    assert label < 0
                else:
                    assert WORDS[label] == str(int((shown[row, : cell + 1] == kind).sum()))
                    numbers.add(WORDS[label])
    assert {"1", "2", "3"} <= numbers


def test_comparisons_of_bare_numbers_are_true():
    found = 0
    for seed in range(40):
        text = text_skills.numbers(Random(seed), wordings.PLAIN)
        for question in (ask() for ask in text.askers):
            numbers = [int(word) for word in question.text.split() if word.isdigit()]
            chosen = max if {"larger", "over", "more"} & set(question.text.split()) else min
            best = str(chosen(numbers))
            expected = best if question.answer.isdigit() else ("yes" if best == str(numbers[0]) else "no")
            assert question.answer == expected and len(set(numbers)) == 2
            found += 1
    assert found == 80


@pytest.mark.parametrize("focus, plain", [(1.0, 0.0), (0.0, 1.0)])
def test_early_rows_ask_in_one_wording(focus, plain):
    batch = make_batch(0, **SHAPE, focus=focus, plain=plain)
    skills = {skill for _, _, skill, _ in batch.asked}
    assert skills <= {"lookup", "name", "tone"} if focus else len(skills) > 5
    assert {form for _, _, skill, form in batch.asked if skill != "choose"} == {"open"}
    starts = set()
    for row, position, skill, _ in batch.asked:
        if skill == "lookup":
            words = words_of(batch.input_ids[row])[: position - 2]
            starts.add(words[len(words) - words[::-1].index(".")])
    assert len(starts) <= 2  # by key and by pointer; there are five of each
