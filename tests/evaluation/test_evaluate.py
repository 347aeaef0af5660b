"""Answers alone and at the end of the chain, against prompts that are rendered and scored one by one."""

import math
from dataclasses import replace

import pytest
import torch

from contextlora.assembly.build import build_data, build_module
from contextlora.backbones.scoring import option_scores
from contextlora.tasks.order import by_length
from contextlora.tasks.prompts import render
from contextlora.tasks.task import item_key


def build(config):
    return build_module(config, build_data(config))


@pytest.fixture
def module(make_config):
    """With trained-looking weights: every slice and gate does something."""
    module = build(make_config())
    shake(module.adapted, lambda name: True)
    return module


def shake(adapted, chosen):
    generator = torch.Generator().manual_seed(1)
    state = adapted.state.read()
    for name, tensor in state.items():
        if chosen(name):
            state[name] = torch.randn(tensor.shape, generator=generator)
    adapted.state.write(state)


def scores_one_by_one(module, task, item, context, use):
    prompt = render(item, module.data.taskset.tasks[task], context)
    with torch.no_grad(), module.adapted.active(use, task):
        return option_scores(module.adapted.model.eval(), module.data.backbone.encode([prompt]))[0]


def chain_by_hand(module, task, item):
    """A task's word for a test item, the items that it builds on answered first."""
    taskset = module.data.taskset
    above = {name: taskset.parent(name, "test", item) for name in taskset.graph.prerequisites(task)}
    context = {name: chain_by_hand(module, name, parent) for name, parent in above.items()}
    return item.options[int(scores_one_by_one(module, task, item, context, module.uses[task]).argmax())]


def test_the_chain_answers_each_prerequisite_first(module):
    prediction = module.evaluator.predict("d", "test", "predicted")
    items = module.data.taskset.items("d", "test")
    assert prediction.words == tuple(chain_by_hand(module, "d", item) for item in items)
    right = [item.answer_word == word for item, word in zip(items, prediction.words, strict=True)]
    assert prediction.accuracy == pytest.approx(sum(right) / len(right))


def test_several_items_of_a_scene_are_answered_as_those_of_scenes_of_their_own(module, make_config, paired_folder):
    paired = build(make_config(f"taskset={paired_folder}"))
    paired.adapted.state.write(module.adapted.state.read())
    for task in "cd":
        found, expected = (one.evaluator.predict(task, "test", "predicted") for one in (paired, module))
        assert found.words == expected.words and torch.equal(found.scores, expected.scores)
        choices = [one.evaluator.chain_choices(task, range(24), ["a"]) for one in (paired, module)]
        assert torch.equal(*choices)


def test_items_that_build_on_one_item_get_its_answer(module):
    twins = [replace(item, id=f"twin of {item.id}") for item in module.data.taskset.items("c", "test")[:3]]
    items = [*module.data.taskset.items("c", "test")[:3], *twins]
    words = module.evaluator.predicted_words("a", "test", items)
    assert words[:3] == words[3:] and None not in words


@pytest.mark.parametrize("context", ["none", "gold"])
def test_without_a_chain_prompts_hold_right_answers_or_none(module, context):
    prediction = module.evaluator.predict("c", "test", context)
    for item, row in zip(module.data.taskset.items("c", "test"), prediction.scores, strict=True):
        given = dict(item.prerequisites) if context == "gold" else {}
        expected = scores_one_by_one(module, "c", item, given, module.uses["c"])
        assert torch.allclose(row, expected, atol=1e-5)


def test_items_of_unlike_lengths_get_their_own_scores(module):
    items = [
        replace(item, question=item.question + " ?" * (15 * (n % 3)))
        for n, item in enumerate(module.data.taskset.items("a", "test")[:12])
    ]
    module.evaluator.batch_size = 4
    assert by_length(items, 4) != list(range(12))
    rows = module.evaluator.answer("a", items, [{}] * 12).scores
    for item, row in zip(items, rows, strict=True):
        assert torch.allclose(row, scores_one_by_one(module, "a", item, {}, module.uses["a"]), atol=1e-5)


def test_the_base_alone_ignores_the_adapter(module):
    before = module.evaluator.predict("c", "test", "gold", use=None).scores
    shake(module.adapted, lambda name: "lora_B" in name)
    item = module.data.taskset.items("c", "test")[0]
    assert torch.allclose(scores_one_by_one(module, "c", item, dict(item.prerequisites), None), before[0], atol=1e-5)


def test_answers_are_kept_exactly_as_long_as_the_weights_behind_them(module, monkeypatch):
    asked = []
    answer = module.evaluator.answer
    monkeypatch.setattr(module.evaluator, "answer", lambda task, *rest: asked.append(task) or answer(task, *rest))
    module.evaluator.predict("d", "test", "predicted")
    assert sorted(asked) == ["a", "b", "c", "d"]
    module.evaluator.predict("d", "test", "predicted")
    module.evaluator.predict("a", "test", "gold")  # a root: all modes are one
    assert len(asked) == 4
    shake(module.adapted, lambda name: name.endswith(".c"))  # c changes, and d that is built on it
    module.evaluator.predict("d", "test", "predicted")
    assert sorted(asked[4:]) == ["c", "d"]
    shake(module.adapted, lambda name: name.endswith("->d"))  # gates into d concern d alone
    module.evaluator.predict("d", "test", "predicted")
    assert asked[6:] == ["d"]


def test_devices_that_share_batches_start_without_remembered_answers(module):
    alone = module.evaluator.predict("c", "test", "predicted").scores
    handed = []

    def run_elsewhere(batches):
        handed.append(len(batches))
        return [run() for run in batches]

    module.evaluator.share(run_elsewhere)
    assert torch.equal(module.evaluator.predict("c", "test", "predicted").scores, alone)
    num_batches = math.ceil(len(module.evaluator.items("c", "test")) / module.evaluator.batch_size)
    assert handed == [num_batches] * 3  # c and both of its prerequisites


def test_chain_answers_take_right_ones_for_the_untrained(module):
    answers = module.evaluator.chain_answers(["c", "d"], "train", untrained={"b"})
    items = module.data.taskset.items("c", "train")
    assert {name for words in answers.values() for name in words} == {"a", "b", "c"}
    given = [answers[item_key("c", item)] for item in items]
    assert [words["b"] for words in given] == [item.prerequisites["b"] for item in items]
    predicted = module.evaluator.predict("a", "train", "none")  # items of one scene stand in one order
    assert [words["a"] for words in given] == list(predicted.words)


def test_max_items_shortens_a_split_but_not_the_chain(make_config):
    module = build(make_config("evaluation.max_items=5"))
    assert len(module.evaluator.predict("d", "test", "predicted").words) == 5
    assert len(module.evaluator.chain_answers(["d"], "train")) == 24


def test_the_mode_of_training_comes_back(module):
    module.adapted.train()
    module.evaluator.predict("a", "test", "none")
    assert module.adapted.training


def test_training_a_task_leaves_the_answers_of_those_it_does_not_change(make_config, monkeypatch):
    module, asked = build(make_config("method.delta=1.0")), []
    shake(module.adapted, lambda name: True)
    answer = module.evaluator.answer
    monkeypatch.setattr(module.evaluator, "answer", lambda task, *rest: asked.append(task) or answer(task, *rest))

    def asked_by_predicting_all():
        asked.clear()
        for task in "abcd":
            module.evaluator.predict(task, "test", "predicted")
        return set(asked)

    module.progress.stage = 2  # of d
    optimizer = module.configure_optimizers()["optimizer"]
    assert asked_by_predicting_all() == set("abcd")
    batch = module.data.encode_items("d", module.data.taskset.items("d", "train")[:4], [{"a": "red", "c": "red"}] * 4)
    module.step_loss(batch).backward()
    assert asked_by_predicting_all() == set()
    optimizer.step()
    assert asked_by_predicting_all() == {"d"}
    module.adapted.state.write(module.adapted.state.read())  # equal values
    assert asked_by_predicting_all() == set()
    with module.adapted.state.replaced({n: 2 * v for n, v in module.adapted.state.read({"d"}).items()}):
        assert asked_by_predicting_all() == {"d"}
    assert asked_by_predicting_all() == {"d"}  # one answer is held per question
    shake(module.adapted, lambda name: name.endswith(".b"))
    assert asked_by_predicting_all() == set("bcd")


def test_an_answer_is_given_anew_when_a_prerequisite_s_prerequisite_changes(make_config):
    module = build(make_config("method=per_task"))  # c does not hold the slice of b, so only its prompts tell
    shake(module.adapted, lambda name: True)
    before = module.evaluator.predict("d", "test", "predicted")
    module.adapted.state.write({n: -v for n, v in module.adapted.state.read({"b"}).items()})
    assert module.evaluator.predict("d", "test", "predicted") is not before
