"""Questions to a model, against the evaluation of the items that they are made from."""

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from contextlora.errors import UserError
from contextlora.serving.ask import Predictor
from tests.trained import trained_module

COLOURS = ["red", "blue", "green"]


@pytest.fixture
def make_predictor(make_config):
    """(settings ...) -> a model to be asked."""

    def make(*settings):
        module = trained_module(make_config(*settings))
        return Predictor(module.data, module.evaluator)

    return make


@pytest.fixture
def predictor(make_predictor):
    return make_predictor()


def question_of(item):
    return {"question": item.question, "options": item.options}


def questions_of(predictor, task):
    """Of every test scene, with the questions of all prerequisites."""
    taskset = predictor.data.taskset
    ancestors = taskset.graph.prerequisites(task, "ancestors")
    for item in taskset.items(task, "test"):
        prerequisites = {name: question_of(taskset.parent(name, "test", item)) for name in ancestors}
        yield question_of(item) | {"prerequisites": prerequisites}


def close(one, other):
    """Whether two answers are one within float tolerance, with all that they depend on."""
    return (
        one.option == other.option
        and list(one.probabilities) == list(other.probabilities)
        and one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        and list(one.prerequisites) == list(other.prerequisites)
        and all(close(one.prerequisites[name], other.prerequisites[name]) for name in one.prerequisites)
    )


@pytest.mark.parametrize("settings", [(), ("taskset.scope=ancestors",), ("taskset.context=gold",), ("method=joint",)])
def test_answers_are_those_of_the_evaluation(make_predictor, settings):
    predictor = make_predictor(*settings)
    expected = {name: predictor.evaluator.predict(name, "test", "predicted") for name in "abcd"}
    found = predictor.ask_many("d", list(questions_of(predictor, "d")))
    for number, answer in enumerate(found):
        assert list(answer.prerequisites) == ["a", "b", "c"]
        for name, one in {**answer.prerequisites, "d": answer}.items():
            scores = expected[name].scores[number]
            assert one.option == expected[name].words[number]
            assert list(one.probabilities.values()) == pytest.approx(scores.softmax(dim=0).tolist(), abs=1e-5)


def test_an_answer_that_is_known_stands_in_the_prompt_and_ends_the_chain(predictor):
    right = predictor.evaluator.predict("d", "test", "gold")
    for number, item in enumerate(predictor.data.taskset.items("d", "test")[:3]):
        known = {name: item.prerequisites[name] for name in ("a", "c")}
        answer = predictor.ask("d", item.question, item.options, prerequisites=known)
        assert list(answer.probabilities.values()) == pytest.approx(right.scores[number].softmax(dim=0).tolist())
        assert {name: (one.option, one.probabilities) for name, one in answer.prerequisites.items()} == {
            name: (word, {}) for name, word in known.items()
        }


def test_a_batch_is_answered_like_its_questions_one_by_one(predictor):
    questions = [
        {"question": "sees p q . c ?", "options": COLOURS, "prerequisites": {"a": "red", "b": "blue"}},
        {"question": "c ?", "options": ["green", "red"], "prerequisites": {"a": "red", "b": "blue"}},
        {
            "question": "sees s s p q . . c ?",
            "options": COLOURS,
            "prerequisites": {"a": {"question": "sees p p . a ?", "options": COLOURS[:2]}, "b": "green"},
        },
    ]
    together = predictor.ask_many("c", questions)
    assert all(map(close, together, (predictor.ask("c", **question) for question in questions)))
    assert predictor.ask_many("c", []) == []


def test_threads_get_the_answers_of_one(predictor):
    calls = [(name, question) for name in "abcd" for question in islice(questions_of(predictor, name), 3)]
    expected = [predictor.ask(name, **question) for name, question in calls]
    order = random.Random(0).choices(range(len(calls)), k=48)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda number: predictor.ask(calls[number][0], **calls[number][1]), order))
    assert all(close(answer, expected[number]) for number, answer in zip(order, found, strict=True))


def test_a_run_without_context_needs_no_answers_and_takes_none(make_predictor):
    predictor = make_predictor("taskset.context=none")
    item = predictor.data.taskset.items("d", "test")[0]
    answer = predictor.ask("d", item.question, list(item.options))
    assert (answer.option, answer.prerequisites) == (predictor.evaluator.predict("d", "test", "none").words[0], {})
    with pytest.raises(UserError, match="context=none: leave out prerequisites, got a, c"):
        predictor.ask("d", item.question, item.options, prerequisites={"a": "red", "c": "red"})


def test_an_image_is_a_path_from_the_current_folder_and_read_each_time(
    make_predictor, other_model_folder, tmp_path, monkeypatch
):
    predictor = make_predictor(f"model={other_model_folder('llava')}")
    monkeypatch.chdir(tmp_path)
    found = []
    for seed in (0, 1):
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save("camera.png")
        paths = ("camera.png", tmp_path / "camera.png")
        one, other = (predictor.ask("a", "sees ?", COLOURS, image=path) for path in paths)
        assert one == other
        found.append(one.probabilities)
    assert found[0] != pytest.approx(found[1], abs=1e-5)
    with pytest.raises(UserError, match=r"image .*none\.png cannot be read"):
        predictor.ask("a", "sees ?", COLOURS, image="none.png")


MISTAKES = [
    ({"task": "e"}, "unknown task 'e'; Known: a, b, c, d"),
    ({"question": " "}, "item d: question must be text that asks something"),
    ({"options": ["red", "Red"]}, "item d: options must be two or more different words"),
    ({"options": "red"}, "item d: options must be a list of words"),
    ({"options": ["red", ""]}, "item d: options must be a list of words"),
    ({"image": 3}, "item d: image must be text"),
    ({"image": "a.png", "image_text": "p"}, ""),  # a model that cannot see reads the text view
    ({"image": "a.png"}, "no image_text, which a model that cannot see needs"),
    ({"prerequisites": None}, "the prompt of task d holds the answer to a, which is missing: put a, a word or"),
    ({"prerequisites": {"a": "red", "c": {"question": "c ?", "options": COLOURS}}}, "task c holds the answer to b"),
    ({"prerequisites": {"a": "red", "c": ""}}, "the answer to c must be a word, or a mapping with .*, got ''"),
    ({"prerequisites": {"a": "red", "c": {"question": "c ?"}}}, "item c lacks options"),
    ({"prerequisites": {"a": "red", "c": {"query": "c ?"}}}, "c has the unknown key query; Known: question"),
    ({"prerequisites": {"a": "red", "b": "red", "c": "red"}}, ""),  # more than is needed does no harm
    ({"prerequisites": {"a": "red", "x": "red"}}, "x is no prerequisite of d: leave it out; Known: a, b, c"),
    ({"prerequisites": ["a"]}, "prerequisites must map tasks to answers or questions"),
    ({"question": "q " * 70}, "tokens"),
]


def test_what_cannot_be_asked_is_said(predictor):
    for changed, message in MISTAKES:
        asked = {"task": "d", "question": "d ?", "options": COLOURS, "prerequisites": {"a": "red", "c": "red"}}
        with pytest.raises(UserError, match=message) if message else nullcontext():
            predictor.ask(**asked | changed)


def test_a_batch_holds_mappings(predictor):
    with pytest.raises(UserError, match="a question must be a mapping with question and options, got 'a"):
        predictor.ask_many("a", ["a ?"])
