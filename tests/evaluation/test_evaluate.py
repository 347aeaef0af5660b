"""Answers alone and at the end of the chain, against prompts that are rendered and scored one by one."""

import math

import pytest
import torch

from contextlora.assembly.build import build_data, build_module
from contextlora.backbones.scoring import option_scores
from contextlora.tasks.prompts import render


@pytest.fixture
def parts(make_config):
    """Parts with trained-looking weights: every slice and gate does something."""
    parts = build_module(make_config(), build_data(make_config()))
    shake(parts.adapted, lambda name: True)
    return parts


def shake(adapted, chosen):
    generator = torch.Generator().manual_seed(1)
    state = adapted.adapter_state()
    for name, tensor in state.items():
        if chosen(name):
            state[name] = torch.randn(tensor.shape, generator=generator)
    adapted.load_adapter_state(state)


def scores_one_by_one(parts, task, item, context, use):
    prompt = render(item, parts.data.taskset.tasks[task], context)
    with torch.no_grad(), parts.adapted.active(use, task):
        return option_scores(parts.adapted.model.eval(), parts.data.backbone.encode([prompt]))[0]


def chain_by_hand(parts, task, scene):
    """A task's word for a test scene, its prerequisites answered first."""
    item = parts.data.taskset.item(task, "test", scene)
    context = {name: chain_by_hand(parts, name, scene) for name in parts.data.taskset.graph.prerequisites(task)}
    return item.options[int(scores_one_by_one(parts, task, item, context, parts.uses[task]).argmax())]


def test_the_chain_answers_each_prerequisite_first(parts):
    prediction = parts.evaluator.predict("d", "test", "predicted")
    assert prediction.words == tuple(chain_by_hand(parts, "d", scene) for scene in prediction.scenes)
    right = [
        i.answer_word == word for i, word in zip(parts.data.taskset.items("d", "test"), prediction.words, strict=True)
    ]
    assert prediction.accuracy == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize("context", ["none", "gold"])
def test_without_a_chain_prompts_hold_right_answers_or_none(parts, context):
    prediction = parts.evaluator.predict("c", "test", context)
    for item, row in zip(parts.data.taskset.items("c", "test"), prediction.scores, strict=True):
        given = dict(item.prerequisites) if context == "gold" else {}
        expected = scores_one_by_one(parts, "c", item, given, parts.uses["c"])
        assert torch.allclose(row, expected, atol=1e-5)


def test_the_base_alone_ignores_the_adapter(parts):
    before = parts.evaluator.predict("c", "test", "gold", use=None).scores
    shake(parts.adapted, lambda name: "lora_B" in name)
    item = parts.data.taskset.items("c", "test")[0]
    assert torch.allclose(scores_one_by_one(parts, "c", item, dict(item.prerequisites), None), before[0], atol=1e-5)


def test_answers_are_kept_exactly_as_long_as_the_weights_behind_them(parts, monkeypatch):
    asked = []
    answer = parts.evaluator._answer
    monkeypatch.setattr(parts.evaluator, "_answer", lambda task, *rest: asked.append(task) or answer(task, *rest))
    parts.evaluator.predict("d", "test", "predicted")
    assert sorted(asked) == ["a", "b", "c", "d"]
    parts.evaluator.predict("d", "test", "predicted")
    parts.evaluator.predict("a", "test", "gold")  # a root: all modes are one
    assert len(asked) == 4
    shake(parts.adapted, lambda name: name.endswith(".c"))  # c changes, and d that is built on it
    parts.evaluator.predict("d", "test", "predicted")
    assert sorted(asked[4:]) == ["c", "d"]
    shake(parts.adapted, lambda name: name.endswith("->d"))  # gates into d concern d alone
    parts.evaluator.predict("d", "test", "predicted")
    assert asked[6:] == ["d"]


def test_devices_that_share_batches_start_without_remembered_answers(parts):
    alone = parts.evaluator.predict("c", "test", "predicted").scores
    handed = []

    def run_elsewhere(batches):
        handed.append(len(batches))
        return [run() for run in batches]

    parts.evaluator.share(run_elsewhere)
    assert torch.equal(parts.evaluator.predict("c", "test", "predicted").scores, alone)
    num_batches = math.ceil(len(parts.evaluator.items("c", "test")) / parts.evaluator.batch_size)
    assert handed == [num_batches] * 3  # c and both of its prerequisites


def test_chain_answers_take_right_ones_for_the_untrained(parts):
    answers = parts.evaluator.chain_answers(["c", "d"], "train", untrained={"b"})
    items = parts.data.taskset.items("c", "train")
    assert {name for name, _ in answers} == {"a", "b", "c"}
    assert all(answers["b", item.scene] == item.prerequisites["b"] for item in items)
    predicted = parts.evaluator.predict("a", "train", "none")
    assert [answers["a", scene] for scene in predicted.scenes] == list(predicted.words)


def test_max_items_shortens_a_split_but_not_the_chain(make_config):
    parts = build_module(make_config("evaluation.max_items=5"), build_data(make_config("evaluation.max_items=5")))
    assert len(parts.evaluator.predict("d", "test", "predicted").words) == 5
    assert len({scene for _, scene in parts.evaluator.chain_answers(["d"], "train")}) == 24


def test_the_mode_of_training_comes_back(parts):
    parts.adapted.train()
    parts.evaluator.predict("a", "test", "none")
    assert parts.adapted.training
