"""Tables become task sets as a mapping says."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from contextlora.commands.import_ import import_
from contextlora.errors import UserError
from contextlora.tasks.faults import TaskSetError
from contextlora.tasks.importers.convert import import_rows
from contextlora.tasks.importers.mapping import read_mapping
from contextlora.tasks.importers.tables import listed, read_tables
from contextlora.tasks.task import SPLITS
from contextlora.tasks.taskset import TaskSet

MAPPING = """
name: machines
scene: "{site}-{machine}"
question: text
answer: label
tasks:
  cause: {where: {kind: cause}, options: [a, b, c], description: what is broken}
  action: {where: {kind: [action, act]}, prerequisites: [cause], question: "{machine} , {text}", num_options: 3}
split: {validation: 20, test: 20, seed: 1}
"""
HEAD = "site,machine,kind,text,a,b,c,label"


def table(machines: int = 20) -> str:
    lines = [HEAD]
    for number in range(machines):
        cause, action = ("dry", "hot", "worn")[number % 3], ("oil it", "stop it", "swap it", "wait")[number % 4]
        lines.append(
            f"s{number % 5},m{number},cause,what is wrong ?,dry,hot,{'' if number % 3 < 2 else 'worn'},{cause}"
        )
        lines.append(f's{number % 5},m{number},act,"now , what ?",,,,{action}')
    return "\n".join(lines) + "\n"


@pytest.fixture
def made(tmp_path):
    """(mapping, table, its file name) -> the task set."""

    def make(mapping: str = MAPPING, content: str = "", name: str = "table.csv") -> TaskSet:
        (tmp_path / "mapping.yaml").write_text(mapping)
        (tmp_path / name).write_text(content or table())
        return import_rows(
            read_tables([str(tmp_path / name)]), read_mapping(tmp_path / "mapping.yaml"), tmp_path / "set"
        )

    return make


def rows_of(taskset: TaskSet) -> dict[str, object]:
    return {(split, task, item.id): item for (task, split), items in taskset.splits.items() for item in items}


def test_a_table_becomes_a_task_set(made):
    taskset = made()
    assert taskset.name == "machines" and taskset.graph.prerequisites("action") == ("cause",)
    items = {item.id: item for items in taskset.splits.values() for item in items}
    assert len(items) == 40
    first, second = items["table.csv:2"], items["table.csv:3"]
    assert (first.scene, first.question, first.options, first.answer) == ("s0-m0", "what is wrong ?", ("dry", "hot"), 0)
    assert second.question == "m0 , now , what ?" and second.answer_word == "oil it"
    assert second.prerequisites == {"cause": "dry"}
    offered = [item.options for item in items.values() if item.scene == second.scene or "now" in item.question]
    assert {len(options) for options in offered if "dry" not in options} == {3}
    answers = [item.answer for item in items.values() if "now" in item.question]
    assert set(answers) == {0, 1, 2}  # not always in the same place
    sizes = {split: len(taskset.items("cause", split)) for split in SPLITS}
    assert sizes == {"train": 12, "validation": 4, "test": 4}
    scenes = [{item.scene for item in taskset.items("action", split)} for split in SPLITS]
    assert not scenes[0] & scenes[1] and not scenes[0] & scenes[2] and not scenes[1] & scenes[2]


@pytest.mark.parametrize("kind", ["json", "jsonl", "tsv", "semicolon", "folder", "parquet"])
def test_every_kind_of_table_gives_the_same_items(made, tmp_path, kind):
    expected = {key[0]: item.question for key, item in rows_of(made()).items()}
    lines = [dict(zip(HEAD.split(","), row, strict=True)) for row in _rows(table())]
    name = {"tsv": "table.tsv", "semicolon": "table.csv", "folder": "tables/table.csv"}.get(kind, f"table.{kind}")
    separator = {"tsv": "\t", "semicolon": ";"}.get(kind, ",")
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(lines), tmp_path / name)
        content = ""
    elif kind == "json":
        content = json.dumps(lines)
    elif kind == "jsonl":
        content = "".join(json.dumps(line) + "\n" for line in lines)
    else:
        content = "".join(
            separator.join(f'"{cell}"' for cell in row) + "\n" for row in [HEAD.split(","), *_rows(table())]
        )
    (tmp_path / "tables").mkdir()
    if content:
        (tmp_path / name).write_text(content)
    source = tmp_path / ("tables" if kind == "folder" else name)
    (tmp_path / "mapping.yaml").write_text(MAPPING)
    found = import_rows(read_tables([str(source)]), read_mapping(tmp_path / "mapping.yaml"), tmp_path / "other")
    assert {key[0]: item.question for key, item in rows_of(found).items()} == expected
    assert {item.scene: item.answer_word for item in rows_of(found).values() if "now" in item.question} == {
        f"s{number % 5}-m{number}": ("oil it", "stop it", "swap it", "wait")[number % 4] for number in range(20)
    }


def _rows(text: str) -> list[list[str]]:
    return list(csv.reader(text.splitlines()))[1:]


@pytest.mark.parametrize(
    ("form", "answers"),
    [
        ("letter", ["a", "B", "c"]),
        ("index", ["0", "1", "2"]),
        ("index_from_1", ["1", "2", "3"]),
        ("one_hot", ["[true,false,false]", "0|1|0", "[0, 0, 1]"]),
        ("text", ["2", "1", "0"]),
    ],
)
def test_answers_are_read_as_the_mapping_says(made, form, answers):
    mapping = "name: n\nscene: id\nquestion: q\nanswer: y\noptions: o\nanswer_as: %s\ntasks: {t: }\nsplit: {seed: 0}"
    lines = ["id\tq\to\ty", *(f"{n}\twhich ?\t2|1|0\t{answers[n % 3]}" for n in range(12))]
    found = {item.scene: item.answer for item in rows_of(made(mapping % form, "\n".join(lines), "t.tsv")).values()}
    assert found == {str(number): number % 3 for number in range(12)}


def test_options_that_begin_with_the_right_one_are_shuffled(made):
    mapping = "name: n\nscene: id\nquestion: q\nanswer: y\noptions: [y, z, w]\noption_order: shuffled\ntasks: {t: }"
    lines = ["id,q,y,z,w", *(f"{n},which ?,right{n},wrong{n},worse{n}" for n in range(40))]
    items = list(rows_of(made(mapping, "\n".join(lines))).values())
    assert {item.answer for item in items} == {0, 1, 2}
    for item in items:
        assert item.answer_word == f"right{item.scene}"
        assert sorted(item.options) == sorted(f"{word}{item.scene}" for word in ("right", "wrong", "worse"))


@pytest.mark.parametrize("value", ["3", "-1", "x", ""])
def test_an_answer_that_is_no_option_is_refused_with_its_line(made, tmp_path, value):
    mapping = "name: n\nscene: id\nquestion: q\nanswer: y\noptions: o\nanswer_as: index\ntasks: {t: }"
    lines = ["id\tq\to\ty", *(f"{n}\twhich ?\t2|1|0\t{value if n == 3 else 0}" for n in range(12))]
    with pytest.raises(TaskSetError, match=r"n/t\.tsv:5: the answer must be the index of one of the 3 options, got"):
        made(mapping, "\n".join(lines), "t.tsv")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("{by: group, column: site, validation: 20, test: 20, seed: 3}", {12: 3, 4: 1}),
        ("{by: time, column: machine, validation: 25, test: 25}", {10: None, 5: None}),
        ("{by: given, column: site, names: {train: [s0, s1, s2], validation: s3, test: s4}}", {12: 3, 4: 1}),
    ],
)
def test_scenes_are_divided_as_the_mapping_says(made, rule, expected):
    taskset = made(MAPPING.partition("split:")[0] + f"split: {rule}")
    groups = {}
    for split in SPLITS:
        items = taskset.items("cause", split)
        groups[split] = {item.scene.partition("-")[0] for item in items}
        assert len(items) in expected
        if "time" not in rule:
            assert len(groups[split]) == expected[len(items)]
    if "time" not in rule:
        assert not groups["train"] & groups["test"] and not groups["train"] & groups["validation"]
    else:
        order = [[item.scene.partition("-")[2] for item in taskset.items("cause", split)] for split in SPLITS]
        assert max(order[0]) < min(order[1]) and max(order[1]) < min(order[2])
    if "given" in rule:
        assert groups == {"train": {"s0", "s1", "s2"}, "validation": {"s3"}, "test": {"s4"}}


def test_images_are_copied_once_and_checked(made, tmp_path):
    for name, colour in (("one", "red"), ("two", "blue")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{name}.png")
    mapping = "name: n\nscene: id\nquestion: q\nanswer: y\nimage: picture\nimage_text: y\ntasks: {t: }"
    lines = [
        "id,q,picture,y",
        *(f"{n},which ?,{('one', 'two')[n % 2]}.png,{('red', 'blue')[n % 2]}" for n in range(12)),
    ]
    taskset = made(mapping, "\n".join(lines))
    assert len(list((taskset.folder / "images").iterdir())) == 2
    item = taskset.items("t", "train")[0]
    assert (
        Image.open(taskset.folder / item.image).getpixel((0, 0))
        == {"red": (255, 0, 0), "blue": (0, 0, 255)}[item.answer_word]
    )
    lines[4] = "3,which ?,three.png,red"
    with pytest.raises(TaskSetError, match=r"n/table\.csv:5: image .*three\.png must be a readable file: No such file"):
        made(mapping, "\n".join(lines))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("question: text", "question: txt"), "the table has no column 'txt'; did you mean text?"),
        (("{machine} , {text}", "{machin}"), "the table has no column 'machin'; did you mean machine?"),
        (("kind: cause", "kind: caus"), "task cause: no row has"),
        (("answer: label", "answers: label"), "unknown key answers; did you mean answer?"),
        (("answer: label\n", ""), "task cause must name the column of its answer"),
        (("seed: 1", "seed: 1, by: site"), "split: by must be one of scene, group, time, given, got 'site'"),
        (("seed: 1", "sed: 1"), "split: unknown key sed; did you mean seed?"),
        (("seed: 1", "by: group"), "split: by group must name a column"),
        (("test: 20", "test: 80"), "together below 100"),
        (("num_options: 3", "num_options: 1"), "num_options must be a whole number of 2 or more, got 1"),
        (("num_options: 3", "option_order: 3"), "option_order must be given or shuffled, got 3"),
        (("options: [a, b, c]", "answer_as: letter"), "answer_as must be text where no options are given"),
        (("prerequisites: [cause]", "prerequisites: [caus]"), "caus"),
        (("prerequisites: [cause]", "prerequisites: [action]"), "action"),
        (('"{site}-{machine}"', "site"), "must say which item of cause it builds on"),
        (("seed: 1", "seed: 1, by: given, column: site"), "names must say what 's0' in column site means"),
        (("name: machines", "name: a/b"), "name must be one printable line"),
    ],
)
def test_a_mapping_with_faults_is_refused_and_nothing_is_written(made, tmp_path, change, said):
    assert change[0] in MAPPING
    with pytest.raises(UserError) as raised:
        made(MAPPING.replace(*change))
    assert said in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mapping.yaml", "table.csv"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", "a,a\n1,2\n", "column 'a' stands twice"),
        ("t.csv", "a,b\n1\n", "line 2 must have 2 cells"),
        ("t.csv", "a,b\n1,2,3\n", "line 2 must have 2 cells"),
        ("t.csv", 'a,b\n1,"2\n', "is no CSV"),
        ("t.csv", "a,b\n", "at least one row"),
        ("t.csv", b"a,b\n\xff,1\n", "must be UTF-8"),
        ("t.json", '{"a": 1}', "must hold a list of objects"),
        ("t.json", "[1]", "must be a mapping of columns"),
        ("t.jsonl", '{"a": 1}\n{"a": }\n', "line 2: not valid JSON"),
        ("t.xlsx", "a", "must end in one of .csv"),
        ("gone.csv", None, "must be a readable file"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TaskSetError, match=said):
        read_tables([str(tmp_path / name)])


def test_a_folder_that_is_there_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mapping.yaml").write_text(MAPPING)
    Path("table.csv").write_text(table())
    import_("mapping.yaml", ["table.csv"])
    assert "make train TASKSET=data/machines" in capsys.readouterr().out
    with pytest.raises(UserError, match="is there already, and is kept; remove it, or name another folder with --to"):
        import_("mapping.yaml", ["table.csv"])


def test_cells_hold_lists_as_json_or_with_bars():
    assert listed(["a", 1]) == ["a", 1] and listed('["a", 1]') == ["a", 1] and listed("a | b c|d") == ["a", "b c", "d"]
