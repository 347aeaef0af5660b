"""`contextlora ask`: from arguments to a table."""

import json

import pytest

from contextlora.cli import main
from tests.trained import trained_run


@pytest.fixture
def ask(make_config, capsys):
    """(arguments ...) -> exit code and output."""
    run, _ = trained_run(make_config())

    def call(*arguments):
        code = main(["ask", *arguments, "--run", str(run.path)])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return call


def options(*words):
    return [part for word in words for part in ("--option", word)]


def test_it_shows_the_answer_and_what_it_depends_on(ask):
    question = {"question": "sees p q . a ?", "options": ["green", "blue"]}
    given = ["--prerequisite", f"a={json.dumps(question)}", "--prerequisite", "b=blue"]
    code, shown = ask("c", "--question", "sees p q . c ?", *options("red", "blue", "green"), *given)
    rows = [line.split() for line in shown.splitlines() if "│" in line]
    cells = [[word for word in row if word != "│"] for row in rows]
    assert code == 0
    assert [row[0] for row in cells] == ["a", "b", "c"]
    assert cells[0][2::2] == ["green", "blue"]
    assert cells[1] == ["b", "blue", "given"]
    assert cells[2][2::2] == ["red", "blue", "green"]
    assert sum(map(float, cells[2][3::2])) == pytest.approx(1, abs=2e-3)
    assert cells[2][1] == max(zip(map(float, cells[2][3::2]), cells[2][2::2], strict=True))[1]


MISTAKES = [
    (["e", "--question", "e ?", *options("red", "blue")], "unknown task 'e'; Known: a, b, c, d"),
    (["a", "--question", "a ?"], "item a: options must be two or more different words"),
    (["c", "--question", "c ?", *options("red", "blue")], "holds the answer to a, which is missing"),
    (["c", "--question", "c ?", "--prerequisite", "a"], "--prerequisite must be TASK=ANSWER, got 'a'"),
    (["c", "--question", "c ?", "--prerequisite", "a={red"], "the question of 'a' in --prerequisite must be JSON"),
    (["a", "--question", "a ?", "model.dtipe=auto"], "unknown key model.dtipe; did you mean model.dtype"),
]


def test_mistakes_are_said_in_a_line(ask):
    for arguments, message in MISTAKES:
        code, shown = ask(*arguments)
        assert code == 2
        assert shown.startswith("contextlora: ") and message in shown and len(shown.splitlines()) == 1


def test_settings_may_follow_the_question(ask):
    code, _ = ask("--question", "sees p q . c ?", *options("red", "blue"), "c", "taskset.context=none")
    assert code == 0
