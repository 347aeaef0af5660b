"""Every rule of a task set, and that one report names all that are broken."""

import json
import time
from dataclasses import replace

import pytest
from PIL import Image

from contextlora.graph.task_graph import GraphError
from contextlora.tasks.datamodule import TaskSetDataModule
from contextlora.tasks.faults import Faults, TaskSetError, shown
from contextlora.tasks.task import SPLITS, Item, Task
from contextlora.tasks.taskset import TaskSet, write_taskset


@pytest.fixture
def change(folder):
    """(file, line, new values of its item; None removes one) -> the folder."""

    def write(file, number, **values):
        lines = (folder / file).read_text().splitlines()
        record = json.loads(lines[number - 1]) | values
        lines[number - 1] = json.dumps({key: value for key, value in record.items() if value != "remove"})
        (folder / file).write_text("\n".join(lines) + "\n")
        return folder

    return write


def refusal(folder):
    with pytest.raises(TaskSetError) as caught:
        TaskSet.load(folder)
    lines = str(caught.value).split("\n")
    assert all(len(line) <= 300 and line.isprintable() for line in lines)
    return lines


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"id": None}, "id must be text or a whole number, got None"),
        ({"id": 1.5}, "id must be text or a whole number, got 1.5"),
        ({"id": " "}, "id must be text"),
        ({"id": "b0"}, "id b0 stands twice in train/b.jsonl"),
        ({"scene": None}, "scene must be text or a whole number, got None"),
        ({"scene": True}, "scene must be text or a whole number, got True"),
        ({"scene": ["a"]}, "scene must be text"),
        ({"question": ""}, "question must be text that asks something, got ''"),
        ({"question": " \t"}, "question must be text"),
        ({"question": None}, "question must be text"),
        ({"question": 17}, "question must be text that asks something, got 17"),
        ({"question": [{"role": "user"}]}, "question must be text"),
        ({"options": None}, "options must be a list of words, got None"),
        ({"options": {"A": "x"}}, "options must be a list of words, got a mapping"),
        ({"options": ["x", None]}, "options must be a list of words"),
        ({"options": ["x", ""]}, "options must be a list of words"),
        ({"options": ["x", [], {}]}, "options must be a list of words"),
        ({"options": ["green", "Green"]}, "by more than case and spaces, got ['green', 'Green']"),
        ({"options": ["green", " green "]}, "by more than case and spaces"),
        ({"options": ["a  b", "A b"]}, "by more than case and spaces"),
        ({"answer": None}, "answer must be the index of an option, 0 to 2, got None"),
        ({"answer": "1"}, "got '1'"),
        ({"answer": 1.0}, "got 1.0"),
        ({"answer": -1}, "got -1"),
        ({"answer": 10**400}, "got a number of more than 60 digits"),
        ({"image": 5}, "image must be text or left out, got 5"),
        ({"image": ["a.png"]}, "image must be text or left out"),
        ({"image": ""}, "image must be text or left out, got ''"),
        ({"image": "a\0b"}, r"image 'a\x00b' cannot be read"),
        ({"image": "../set.png"}, "must lie in the task set's folder"),
        ({"image": "taskset.yaml"}, "damaged or none of PNG"),
        ({"image_text": True}, "image_text must be text or left out, got True"),
        ({"prerequisites": None}, "as words, got None; leave the key out where there are none"),
        ({"prerequisites": "null"}, "prerequisites must map tasks to their right answers, as words, got 'null'; leave"),
        ({"prerequisites": 5}, "prerequisites must map tasks to their right answers, as words, got 5"),
        ({"prerequisites": ["red"]}, "prerequisites must map tasks"),
        ({"prerequisites": {"a": ["red"]}}, "got ['red'] for a"),
        ({"prerequisites": {"a": 0}}, "got 0 for a"),
        ({"prerequisites": {"a": "red"}}, "a of scene train1 is 'green' there, 'red' here"),
        ({"prerequisites": {"a": "banana"}}, "a of scene train1 is 'green' there, 'banana' here"),
        ({"prerequisites": {"zzz": "red"}}, "names zzz, no prerequisite of b"),
        ({"scene": "apart", "prerequisites": {"a": "banana"}}, "a of scene apart must be an option of a, got 'banana'"),
        ({"fields": "abc"}, "fields must map names to text or numbers, got 'abc'"),
        ({"fields": {"k": [1]}}, "got [1] for k"),
        ({"scene": "test0"}, "scene test0"),
        ({"scene": "train1 "}, "scene must not begin or end with a space, got 'train1 '"),
        ({"id": " b1"}, "id must not begin or end with a space"),
        ({"\x1b[31m": 1}, r"unknown keys '\x1b[31m'"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(change, values, message):
    lines = refusal(change("train/b.jsonl", 2, **values))
    assert any("train/b.jsonl:2: " in line and message in line for line in lines), lines
    assert len(lines) == 1 or "test0" in message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: small", "name: [x]", "name must be one printable line"),
        ("name: small", "name: ../../x", "name must be one printable line without / and"),
        ("name: small", "name: ''", "name must be one printable line"),
        ("name: small", "name: " + "x" * 400, "name must have at most 100 characters, got 400"),
        ("name: small", "template: [x]", "template must be text, got ['x']"),
        ("num_options: 3", "num_options: '3'", "num_options must be a whole number"),
        ("num_options: 3", "num_options: null", "num_options must be a whole number"),
        ("num_options: 3", "num_options: yes", "got 'yes'"),
        ("num_options: 3", "num_options: 1" + "0" * 400, "got a number of more than 60 digits"),
        ("[a]", "[[]]", "prerequisites must be a list of task names"),
        ("[a]", "{a: 1}", "prerequisites must be a list of task names"),
        ("[a]", "[a, a]", "lists prerequisite 'a' twice"),
        ("[a]", "[b]", "its own prerequisite"),
        ("[a]", "[zzz]", "needs unknown task 'zzz'"),
        ("prerequisites: []", "prerequisites: [b]", "has a cycle"),
        ("[red, red]", "[red, null]", "its rule must hold words only, got None"),
        ("[red, red]", "[red, red]\n    - [red, blue]", "one row for each case, got two for ['red']"),
        ("description: what?", "description: [x]", "description must be text"),
    ],
)
def test_a_wrong_description_is_named(edit, old, new, message):
    lines = refusal(edit("taskset.yaml", old, new))
    assert any("taskset.yaml:" in line and message in line for line in lines), lines


def test_null_and_none_in_the_description_mean_nothing_given(edit):
    edit("taskset.yaml", "prerequisites: []", "prerequisites: None\n    rule: null")
    taskset = TaskSet.load(edit("taskset.yaml", "name: small", "name: null\ntemplate: null"))
    assert (taskset.name, taskset.tasks["a"].prerequisites) == (taskset.folder.name, ())


def test_words_of_a_rule_stay_words(edit):
    taskset = TaskSet.load(edit("taskset.yaml", "[red, red]", "[no, yes]"))
    assert taskset.tasks["b"].rule["no",] == "yes"


def test_one_report_names_every_fault(change, edit):
    edit("taskset.yaml", "name: small", "nam: small")
    edit("taskset.yaml", "num_options: 3", "num_options: x")
    change("train/a.jsonl", 1, answer=9)
    change("train/b.jsonl", 3, question=None, options=["x"])
    folder = change("test/b.jsonl", 2, image="no.png")
    (folder / "validation" / "c.jsonl").write_text("")
    head, *lines = refusal(folder)
    assert head.endswith("has 8 faults:")
    places = ("taskset.yaml: has unknown keys nam", "taskset.yaml:3: task a", "train/a.jsonl:1", "train/b.jsonl:3")
    for place in (*places, "test/b.jsonl:2", "validation/c.jsonl: belongs to no task"):
        assert any(line.startswith(f"  {place}") for line in lines), place


@pytest.mark.parametrize(
    "name", ["c.jsonl", "train/c.jsonl", "train/a.JSONL", "Train/a.jsonl", "TEST/b.json", "x/y.Jsonl"]
)
def test_item_files_that_nothing_reads_are_named_in_any_case_of_letters(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}\n")
    [line] = refusal(folder)
    assert f"/{name}: belongs to no task" in line
    (folder / name).rename(folder / "notes.json")  # no item file
    TaskSet.load(folder)


def test_a_report_ends_somewhere():
    faults = Faults("set")
    for number in range(5000):
        faults.add(f"train/a.jsonl:{number}", "x" * 1000)
    with pytest.raises(TaskSetError) as caught:
        faults.raise_any()
    lines = str(caught.value).split("\n")
    assert (lines[0], len(lines)) == ("task set set has 5000 faults:", 22)
    assert lines[-1] == "  and 4980 more; mend these first" and max(map(len, lines)) <= 300


def test_values_are_shown_short_and_in_one_line():
    deep = []
    for _ in range(10_000):
        deep = [deep, deep]
    for value in (deep, "x" * 10**6, "\x1b[2J\n", {"k" * 999: deep}, 10**5000, b"\0" * 999, "\ud800"):
        assert len(shown(value)) <= 130 and shown(value).isprintable() and shown(value).isascii()


def test_a_scene_lies_in_one_split_whichever_tasks_ask_about_it(change):
    change("test/b.jsonl", 1, scene="shared")
    [line] = refusal(change("train/a.jsonl", 1, scene="shared"))
    assert "test/b.jsonl:1: scene shared is in train too (train/a.jsonl:1); no scene may be in two splits" in line


def test_a_picture_that_many_items_show_is_one_fault(folder):
    (folder / "images" / "one.png").write_bytes(b"GIF89a")
    [line] = refusal(folder)
    assert "train/a.jsonl:2: item a1: image images/one.png cannot be read" in line


def test_right_answers_that_are_left_out_come_from_the_scene(change):
    folder = change("train/b.jsonl", 1, prerequisites="remove")
    assert TaskSet.load(folder).items("b", "train")[0].prerequisites == {"a": "red"}


class Blind:
    is_multimodal = reads_sentences = False


@pytest.mark.parametrize("context", ["gold", "predicted"])
def test_context_that_would_be_missing_is_found_before_training(change, context):
    taskset = TaskSet.load(change("test/b.jsonl", 1, scene="alone", prerequisites={}))
    TaskSetDataModule(taskset, Blind(), context="none")
    with pytest.raises(
        TaskSetError, match=rf"test/b\.jsonl:1: item b0: context {context} needs an answer of task a for"
    ):
        TaskSetDataModule(taskset, Blind(), context=context)
    given = TaskSet.load(change("test/b.jsonl", 1, prerequisites={"a": "red"}))
    if context == "gold":
        TaskSetDataModule(given, Blind(), context="gold")
    else:  # nobody predicts what is not asked
        with pytest.raises(TaskSetError, match="context predicted needs an answer"):
            TaskSetDataModule(given, Blind(), context="predicted")


def test_a_missing_text_view_is_found_before_training(change):
    taskset = TaskSet.load(change("test/a.jsonl", 2, image_text=None))
    with pytest.raises(TaskSetError, match=r"test/a\.jsonl:2: item a1 of task a has no image_text"):
        TaskSetDataModule(taskset, Blind())


def test_items_made_in_memory_are_checked_like_those_that_are_read(tmp_path):
    items = {("a", split): [Item(split, split, "q ?", ("x", "y"), 0)] for split in SPLITS}
    assert TaskSet.from_items([Task("a", (), 2)], items).items("a", "test")[0].id == "test"
    loose = items | {("a", "test"): [Item("1", "z", "q ?", ["x", "y"], 1, prerequisites=None, fields=None)]}
    [item] = TaskSet.from_items([Task("a", (), 2)], loose).items("a", "test")
    assert (item.options, item.prerequisites, item.fields) == (("x", "y"), {}, {})
    wrong = items | {("a", "train"): [replace(items["a", "train"][0], answer=7, image=5)], ("zzz", "train"): []}
    with pytest.raises(TaskSetError) as caught:
        TaskSet.from_items([Task("a", (), 2)], wrong, folder=tmp_path)
    for part in ("train/a[0]: item train: answer must", "image must be text", "('zzz', 'train')"):
        assert part.replace("(", "[").replace(")", "]") in str(caught.value).replace("(", "[").replace(")", "]")
    with pytest.raises(GraphError, match="declared twice"):
        TaskSet.from_items([Task("a", (), 2)] * 2, items)


def test_two_thousand_items_load_in_well_under_a_second(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    names = {"train": 800, "validation": 100, "test": 100}
    items = {
        (task, split): [
            Item(
                f"{n}",
                f"{split}{n}",
                f"{n} ?",
                ("x", "y"),
                n % 2,
                "x.png",
                "x",
                {} if task == "a" else {"a": "xy"[n % 2]},
            )
            for n in range(count)
        ]
        for task in "ab"
        for split, count in names.items()
    }
    write_taskset(tmp_path, "many", [Task("a", (), 2), Task("b", ("a",), 2)], items)
    began = time.process_time()
    TaskSet.load(tmp_path)
    assert time.process_time() - began < 0.7  # 0.12 s on two busy cores
