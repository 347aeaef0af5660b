from pathlib import Path

import pytest

from contextlora.tasks.prompts import context_of, render, resolve_image_view
from contextlora.tasks.task import Item, Task, TaskSetError

TASK = Task("route", ("hazard", "grip"), 2)
ITEM = Item(
    id="i",
    scene="s",
    question="lane c2 . route ?",
    options=("main", "bridge"),
    answer=1,
    image="images/s.png",
    image_text="camera : dog c1 r3 .",
    prerequisites={"hazard": "fixed", "grip": "dry"},
)


def test_default_template_with_everything():
    prompt = render(ITEM, TASK, {"hazard": "fixed", "grip": "dry"}, folder=Path("data"))
    assert prompt.text == (
        "<image> lane c2 . route ? given : hazard fixed , grip dry . options : main , bridge . answer :"
    )
    assert (prompt.image_path, prompt.continuations, prompt.answer) == (
        Path("data/images/s.png"),
        ("main", "bridge"),
        1,
    )


def test_parts_that_are_empty_drop_out():
    plain = Item(id="i", scene="s", question="q ?", options=("x", "y"), answer=0)
    assert render(plain, TASK).text == "q ? options : x , y . answer :"
    asks_by_image = Item(id="i", scene="s", question="", options=("x", "y"), answer=0, image="s.png")
    assert render(asks_by_image, TASK).text == "<image> options : x , y . answer :"


def test_text_view_and_letters():
    prompt = render(ITEM, TASK, image="text", answer_format="letter")
    assert prompt.text == "camera : dog c1 r3 . lane c2 . route ? options : a main , b bridge . answer :"
    assert (prompt.image_path, prompt.continuations, prompt.answer) == (None, ("a", "b"), 1)


def test_a_template_of_ones_own_keeps_its_spaces_and_lines():
    template = "Q:  {question}\n{context}\n{options}\nA: "
    assert render(ITEM, TASK, template=template).text == "Q:  lane c2 . route ?\n\nmain , bridge\nA:"


def test_lines_of_options_and_sentences_of_context():
    given = {"hazard_class": "fixed", "grip": "dry"}
    words = {"hazard_class": "The {task} is {answer}.", "grip": None}
    template = "{image} {context} {question}\n{option_lines}\nAnswer:"
    prompt = render(ITEM, TASK, given, template=template, as_context=words, image="text")
    first = "camera : dog c1 r3 . given : grip dry . The hazard class is fixed. lane c2 . route ?"
    assert prompt.text == f"{first}\n- main\n- bridge\nAnswer:"
    assert prompt.continuations == ("main", "bridge")
    prompt = render(ITEM, TASK, template=template, answer_format="letter")
    assert prompt.text == "<image> lane c2 . route ?\nA. main\nB. bridge\nAnswer:" and prompt.continuations == (
        "A",
        "B",
    )


def test_an_answer_with_braces_is_no_field():
    given = render(ITEM, TASK, {"hazard": "{task}"}, as_context={"hazard": "{answer} of {task}"}).text
    assert "{task} of hazard options" in given


def test_context_modes():
    predicted = {"hazard": "agile", "grip": "wet"}
    assert context_of(ITEM, ("hazard", "grip"), "none", predicted) == {}
    assert context_of(ITEM, ("grip", "other"), "gold", predicted) == {"grip": "dry"}
    assert context_of(ITEM, ("hazard", "grip"), "predicted", predicted) == {"hazard": "agile", "grip": "wet"}
    with pytest.raises(TaskSetError, match="needs an answer of task grip for item i"):
        context_of(ITEM, ("hazard", "grip"), "predicted", {"hazard": "agile"})
    with pytest.raises(TaskSetError, match="must be one of none, gold, predicted, got 'all'"):
        context_of(ITEM, (), "all", {})


def test_image_view():
    assert [resolve_image_view("auto", sees) for sees in (True, False)] == ["image", "text"]
    assert resolve_image_view("text", True) == "text"
    for setting, sees in (("image", False), ("sound", True)):
        with pytest.raises(TaskSetError, match="image must be"):
            resolve_image_view(setting, sees)


def test_what_cannot_be_rendered():
    blind = Item(id="i", scene="s", question="q", options=("x", "y"), answer=0, image="s.png")
    with pytest.raises(TaskSetError, match="item i of task route has no image_text"):
        render(blind, TASK, image="text")
    many = Item(id="i", scene="s", question="q", options=tuple(map(str, range(27))), answer=0)
    with pytest.raises(TaskSetError, match="more options than letters"):
        render(many, TASK, answer_format="letter")
    with pytest.raises(TaskSetError, match="word, letter, got 'number'"):
        render(ITEM, TASK, answer_format="number")
