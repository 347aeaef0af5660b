import pytest

from contextlora.commands.new_taskset import new_taskset
from contextlora.errors import UserError
from contextlora.tasks.prompts import NATURAL_CONTEXT, NATURAL_TEMPLATE
from contextlora.tasks.task import SPLITS
from contextlora.tasks.taskset import TaskSet


def test_an_example_to_start_from_loads_and_keeps_what_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    new_taskset("no")  # a word that YAML reads as false
    assert "make train TASKSET=no" in capsys.readouterr().out
    taskset = TaskSet.load(tmp_path / "no")
    assert taskset.name == "no" and taskset.graph.prerequisites("action") == ("state",)
    assert {split: len(taskset.items("state", split)) for split in SPLITS} == {
        "train": 200,
        "validation": 50,
        "test": 50,
    }
    with pytest.raises(UserError, match="is there already, and is kept; name another"):
        new_taskset("no")


def test_its_commented_keys_hold_too(tmp_path):
    new_taskset(str(tmp_path / "mine"))
    path = tmp_path / "mine/taskset.yaml"
    text = path.read_text()
    for key in ("template: ", "as_context: ", "metadata: ", "context: ", "rule: "):
        assert f"# {key}" in text
        text = text.replace(f"# {key}", key)
    path.write_text(text)
    taskset = TaskSet.load(tmp_path / "mine")
    assert (taskset.template, taskset.as_context) == (NATURAL_TEMPLATE, NATURAL_CONTEXT)
    task = taskset.tasks["action"]
    assert task.context == ("state",) and task.rule == {("hot",): "stop", ("normal",): "run"}


def test_every_question_follows_from_what_it_says(tmp_path):
    new_taskset(str(tmp_path / "mine"))
    taskset = TaskSet.load(tmp_path / "mine")
    for split in SPLITS:
        for item in taskset.items("action", split):
            state = taskset.parent("state", split, item)
            words = state.question.replace(",", "").split()
            assert state.answer_word == ("hot" if int(words[1]) > int(words[3]) else "normal")
            assert f"{state.answer_word} {item.answer_word}" in item.question


@pytest.mark.parametrize("name", ["a\ud800", "x" * 300])
def test_a_name_that_no_file_system_takes_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="NAME must be a path of at most 3000 bytes, 255 for each name in it"):
        new_taskset(name)
    assert not list(tmp_path.iterdir())
