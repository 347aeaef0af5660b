import json
import shutil
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from contextlora.tasks.faults import TaskSetError
from contextlora.tasks.task import SPLITS, Item, Task
from contextlora.tasks.taskset import TaskSet, write_taskset


def test_reads_what_was_written(folder):
    taskset = TaskSet.load(folder)
    assert (taskset.name, taskset.graph.tasks, taskset.template) == ("small", ("a", "b"), None)
    assert taskset.tasks["b"].rule == {("red",): "red", ("green",): "green", ("blue",): "blue"}
    item = taskset.items("b", "test")[1]
    assert (item.scene, item.answer_word, item.prerequisites) == ("test1", "green", {"a": "green"})
    assert taskset.parent("a", "test", item) is taskset.items("a", "test")[1]
    assert taskset.parent("b", "test", taskset.items("a", "test")[1]) is None
    assert taskset.has_images


def test_a_line_of_a_file_ends_where_json_lines_end(edit):
    folder = edit("train/b.jsonl", '"question": "', '"question": "one\u2028two ')
    assert TaskSet.load(folder).items("b", "train")[0].question.startswith("one\u2028two ")


def test_a_learning_curve_takes_the_first_train_items_of_every_task(folder):
    whole = TaskSet.load(folder)
    part = whole.with_train_items(2)
    for task in ("a", "b"):
        assert part.items(task, "train") == whole.items(task, "train")[:2]
        assert part.items(task, "test") == whole.items(task, "test")
    assert whole.with_train_items(None).splits == whole.splits


def test_a_learning_curve_keeps_items_with_those_that_they_build_on():
    """Tasks need not ask of the same scenes in the same order."""

    def item(name, prerequisites=None):
        return Item(name, name, "sees what ?", ("red", "blue"), 0, prerequisites=prerequisites)

    scenes = {"a": "pqrs", "b": "zsrqp"}
    tasks = [Task("a", (), 2), Task("b", ("a",), 2)]
    items = {
        (task, split): [item(f"{split}{one}", {"a": "red"} if task == "b" and one != "z" else None) for one in names]
        for task, names in scenes.items()
        for split in SPLITS
    }
    part = TaskSet.from_items(tasks, items).with_train_items(2)
    assert [one.scene for one in part.items("a", "train")] == ["trainp", "trainq"]
    assert [one.scene for one in part.items("b", "train")] == ["trainz", "trainq"]
    assert part.places["b", "train"] == ("train/b[0]", "train/b[3]")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("train/b.jsonl", '"answer": 2', '"answer": 3', r"b\.jsonl:3: item b2: answer must be .* 0 to 2, got 3"),
        ("train/b.jsonl", '"answer": 0', '"answer": true', "answer must be the index of an option"),
        ("train/b.jsonl", '"answer": 0, ', "", r"b\.jsonl:1: item b0 lacks answer"),
        ("train/b.jsonl", '"scene"', '"scenes"', "lacks scene"),
        ("train/b.jsonl", '"id"', '"note": 1, "id"', "unknown keys note; put what is your own into metadata"),
        ("train/b.jsonl", '["red", "green", "blue"]', '["red", "red"]', "two or more different words"),
        ("train/b.jsonl", '["red", "green", "blue"]', '"red"', "must be a list of words"),
        ("train/b.jsonl", '["red", "green", "blue"]', '["red", "x", "y", "z"]', "has 4 options, its task at most 3"),
        ("train/b.jsonl", "images/one.png", "images/two.png", r"jsonl:2: item b1: image images/two.png not found"),
        ("train/b.jsonl", '{"a": "red"}', '{"c": "red"}', "item b0 names c, no prerequisite of b"),
        ("train/b.jsonl", '"fields"', '"parents": {"c": 1}, "fields"', "item b0 names c, no prerequisite of b"),
        ("train/b.jsonl", '"fields"', '"parents": "a0", "fields"', "parents must map tasks to the ids of their items"),
        ("train/b.jsonl", '"fields"', '"parents": {"a": "a1"}, "fields"', r"b\.jsonl:1: .* item a1 of a, .* has: a0"),
        ("train/a.jsonl", "train1", "train0", r'b\.jsonl:1: item b0 must say .* a0, a1; add "parents": \{"a": "a0"\}'),
        ("test/b.jsonl", "test1", "train0", r"scene train0 is in train too \(train/a\.jsonl:1\)"),
        ("train/b.jsonl", "{", "", r"b\.jsonl:1: not valid JSON"),
        ("train/b.jsonl", '{"id": "b0"', '[]\n{"id": "b0"', "must be a JSON object"),
        ("taskset.yaml", "tasks:", "tasks: [", "is no valid YAML"),
        ("taskset.yaml", "tasks:", "works:", "must hold the keys name and tasks"),
        ("taskset.yaml", "name: small", "nam: small", "unknown keys nam; put what is your own into metadata"),
        ("taskset.yaml", "name: small", "template: '{question} {image}'", r"template has no \{options\}"),
        ("taskset.yaml", "name: small", "template: '{options}'", r"template has no \{question\}"),
        ("taskset.yaml", "name: small", "template: '{question} {options} {options}'", r"\{options\} twice; mend it"),
        ("taskset.yaml", "name: small", "template: '{ question } {options}'", r"'\{ question \}', but braces may"),
        ("taskset.yaml", "name: small", "template: '{{question}} {options}'", r"'\{\}', but braces may"),
        ("taskset.yaml", "name: small", "template: '{question!r} {options}'", r"'\{question!r\}', but braces may"),
        ("taskset.yaml", "name: small", "template: '{question} {options} }'", r"'\}', but braces may"),
        ("taskset.yaml", "name: small", "template: '{options} {picture}'", r"unknown field \{picture\}"),
        (
            "taskset.yaml",
            "name: small",
            "template: '{question} {options} {option_lines}'",
            r"\{options\} twice; mend it",
        ),
        ("taskset.yaml", "name: small", "template: [a]", r"yaml: template must be text, got \['a'\]"),
        ("taskset.yaml", "name: small", "as_context: 'it is so'", r"the as_context has no \{answer\}; mend it"),
        (
            "taskset.yaml",
            "  b:",
            "  b:\n    template: '{question}'",
            r"yaml:\d+: task b: .* has no \{options\}; mend it",
        ),
        (
            "taskset.yaml",
            "  b:",
            "  b:\n    as_context: '{word}'",
            r"yaml:\d+: task b: .* field \{word\} beside task, answer",
        ),
        ("taskset.yaml", "num_options: 3", "num_options: 1", "num_options must be a whole number of at least 2"),
        ("taskset.yaml", "num_options", "options", "with the keys prerequisites, num_options"),
        ("taskset.yaml", "[a]", "a", "prerequisites must be a list"),
        ("taskset.yaml", "[red, red]", "[red]", "must list 2 words"),
    ],
)
def test_says_what_is_wrong_and_where(edit, file, old, new, message):
    with pytest.raises(TaskSetError, match=message):
        TaskSet.load(edit(file, old, new))


def test_the_graph_is_checked_too(edit):
    with pytest.raises(TaskSetError, match=r"taskset\.yaml:\d+: task 'b' needs unknown task 'zzz'"):
        TaskSet.load(edit("taskset.yaml", "[a]", "[zzz]"))


def test_missing_and_empty_files(folder, tmp_path_factory):
    (folder / "test" / "b.jsonl").write_text("\n")
    with pytest.raises(TaskSetError, match=r"b\.jsonl: holds no item"):
        TaskSet.load(folder)
    (folder / "test" / "b.jsonl").unlink()
    with pytest.raises(TaskSetError, match=r"test/b\.jsonl: task b: must be a readable file"):
        TaskSet.load(folder)
    with pytest.raises(TaskSetError, match=r"taskset\.yaml: must be a readable file: No such file"):
        TaskSet.load(tmp_path_factory.mktemp("empty"))


def test_the_example_of_the_documentation_loads(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    description = text.split("taskset.yaml:\n")[1].split("An item:")[0]
    item = json.loads(text.split("An item:\n")[1].split("Items of one scene")[0])
    (tmp_path / "taskset.yaml").write_text(textwrap.dedent(description.lstrip("\n")))
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / item["image"])
    child = {"question": "route ?", "options": ["main", "bypass"], "answer": 0, "prerequisites": {"hazard": "heavy"}}
    for split in ("train", "validation", "test"):
        (tmp_path / split).mkdir()
        scene = {"scene": f"{item['scene']}-{split}"}
        (tmp_path / split / "hazard.jsonl").write_text(json.dumps(item | scene) + "\n")
        (tmp_path / split / "route.jsonl").write_text(json.dumps(item | child | scene) + "\n")
    taskset = TaskSet.load(tmp_path)
    assert taskset.graph.prerequisites("route") == ("hazard",)
    [loaded] = taskset.items("hazard", "train")
    assert (loaded.options, loaded.answer, loaded.image_text) == (("light", "heavy"), 1, "c2 r1 lorry")


def test_a_task_has_words_of_its_own_where_it_brings_any(edit):
    edit("taskset.yaml", "name: small", "name: small\ntemplate: '{context} {question} {options}'")
    taskset = TaskSet.load(edit("taskset.yaml", "  a:", "  a:\n    as_context: 'It is {answer}.'"))
    item = taskset.items("b", "test")[0]
    assert taskset.prompt("b", item, {"a": "red"}).text == "It is red. colour 0 in test . b ? red , green , blue"
    own = replace(taskset.tasks["b"], template="{question}\n{option_lines}\n=")
    changed = replace(taskset, tasks={**taskset.tasks, "b": own})
    assert changed.prompt("b", item, {"a": "red"}).text == "colour 0 in test . b ?\n- red\n- green\n- blue\n="
    assert changed.prompt("a", item, None).text == "colour 0 in test . b ? red , green , blue"
    with pytest.raises(TaskSetError, match="task b: the prompt template has no"):
        TaskSet.from_items([taskset.tasks["a"], replace(own, template="{options}")], taskset.splits)


@pytest.mark.parametrize("value", [0, "words", [1, {"a": None}], {"a": {"b": 1.5}}, False])
def test_metadata_may_be_anything_and_is_kept(value, edit, tmp_path):
    edit("taskset.yaml", "name: small", f"name: small\nmetadata: {json.dumps(value)}")
    edit("taskset.yaml", "num_options: 3", f"num_options: 3\n    metadata: {json.dumps(value)}")
    taskset = TaskSet.load(edit("train/a.jsonl", '"fields"', f'"metadata": {json.dumps(value)}, "fields"'))
    assert taskset.items("a", "train")[0].metadata == value and taskset.items("a", "train")[1].metadata is None
    write_taskset(tmp_path / "again", "again", taskset.tasks.values(), taskset.splits)
    shutil.copytree(taskset.folder / "images", tmp_path / "again" / "images")
    again = TaskSet.load(tmp_path / "again")
    assert (again.tasks, again.splits) == (taskset.tasks, taskset.splits)


def test_items_of_one_scene_belong_together_by_their_ids(taskset, paired_folder):
    paired = TaskSet.load(paired_folder)
    for key, items in taskset.splits.items():
        for item, other in zip(items, paired.splits[key], strict=True):
            assert (other.prerequisites, other.parents) == (item.prerequisites, item.parents)
    assert paired.items("d", "test")[1].parents == dict.fromkeys("abc", "test-1")


def test_an_ancestor_that_parents_do_not_share_is_left_out_or_named():
    """a has two items of a scene; d needs b and c, which build on one each."""
    needs = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}
    tasks = [Task(name, above, 2) for name, above in needs.items()]

    def load(**given):
        items = {}
        for split in SPLITS:
            own = {"scene": split, "question": "which ?", "options": ("x", "y")}
            items["a", split] = [Item(id=str(n), answer=n, **own) for n in range(2)]
            items["b", split] = [Item(id="b", answer=0, parents={"a": "0"}, **own)]
            items["c", split] = [Item(id="c", answer=0, parents={"a": "1"}, **own)]
            items["d", split] = [Item(id="d", answer=0, parents=given, **own)]
        return TaskSet.from_items(tasks, items).items("d", "test")[0]

    assert load().parents == {"b": "b", "c": "c"} and load().prerequisites == {"b": "x", "c": "x"}
    assert load(a="1").prerequisites == {"a": "y", "b": "x", "c": "x"}


def test_a_task_may_show_some_prerequisites_only(tmp_path):
    tasks = [Task("a", (), 2), Task("b", ("a",), 2, context=()), Task("c", ("a", "b"), 2, context=("b",))]
    items = {split: [Item(f"{split}1", f"{split}1", "which ?", ("x", "y"), 0)] for split in SPLITS}
    rows = {(task.name, split): items[split] for task in tasks for split in SPLITS}
    write_taskset(tmp_path / "set", "set", tasks, rows)
    taskset = TaskSet.load(tmp_path / "set")
    shown = {task: taskset.context_tasks(task, "direct") for task in "abc"}
    assert shown == {"a": (), "b": (), "c": ("b",)} and taskset.graph.prerequisites("c") == ("a", "b")
    with pytest.raises(TaskSetError, match="task b: context must list tasks that it needs, got c"):
        TaskSet.from_items([tasks[0], Task("b", ("a",), 2, context=("c",)), tasks[2]], rows)
