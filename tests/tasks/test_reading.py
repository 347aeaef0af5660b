"""Files as users and their tools write them: what is legal loads, what is not is one line that says where and why."""

import json

import pytest

from contextlora.tasks.faults import Faults, TaskSetError
from contextlora.tasks.reading import parse_json, read_lines, read_yaml
from contextlora.tasks.taskset import TaskSet
from contextlora.tasks.tasksets import resolve_taskset

ITEM = {"id": "n", "scene": "new", "question": "q ?", "options": ["red", "green"], "answer": 1}


def first_item(folder, line):
    """The first train item of task a, once the line stands before the others."""
    path = folder / "train" / "a.jsonl"
    path.write_bytes((line if isinstance(line, bytes) else line.encode()) + b"\n" + path.read_bytes())
    return TaskSet.load(folder).items("a", "train")[0]


def fault_of(folder):
    """The one line with which a folder is refused."""
    with pytest.raises(TaskSetError) as caught:
        TaskSet.load(folder)
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value) and str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\ufeff"])
def test_marks_that_end_lines_elsewhere_may_stand_in_strings(folder, mark):
    escaped = f"\\u{ord(mark):04x}" if mark < " " else mark  # JSON itself wants these escaped
    line = json.dumps(ITEM).replace("q ?", f"q{escaped}?")
    assert first_item(folder, line).question == f"q{mark}?"


@pytest.mark.parametrize("file", ["taskset.yaml", "train/a.jsonl", "test/b.jsonl"])
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(folder, file):
    before = TaskSet.load(folder)
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n") + b"\r\n\r\n")
    after = TaskSet.load(folder)
    assert (after.name, after.tasks, after.splits) == (before.name, before.tasks, before.splits)


def test_null_stands_for_what_is_left_out(folder):
    nulls = {"image": None, "image_text": None, "prerequisites": {"a": None}, "fields": {"k": None}}
    item = first_item(folder, json.dumps(ITEM | nulls))
    assert (item.image, item.image_text, item.prerequisites, item.fields) == (None, None, {}, {})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps(ITEM).replace("q ?", "Straße").encode("latin-1"), r"must be UTF-8, byte \d+ is 0xdf"),
        (json.dumps(ITEM).encode("utf-16"), "must be UTF-8"),
        (b"\xed\xa0\x80", "must be UTF-8"),
        (json.dumps(ITEM | {"question": "\ud800"}), r"half of a surrogate pair, '\\ud800'"),
        (json.dumps(ITEM | {"\udfff": 1}), "half of a surrogate pair"),
        ("[" * 100_000, "too deep"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "too deep"),
        ('{"id": ' + "9" * 5000 + "}", "more than 4300 digits"),
        ('{"id": 1e999}', "must be finite, got '1e999'"),
        ('{"id": NaN}', "NaN is no JSON value"),
        ('{"id": -Infinity}', "-Infinity is no JSON value"),
        ('{"id": 1, "id": 2}', "key 'id' stands twice"),
        ('{"fields": {"k": 1, "k": 2}}', "key 'k' stands twice"),
        ('{"id": 1},', "not valid JSON: Extra data"),
        ("\0", "not valid JSON"),
        ('"' + "x" * (1 << 20) + '"', "at most 1 MiB"),
    ],
)
def test_json_that_is_none_is_named_by_its_line(folder, line, message):
    path = folder / "train" / "a.jsonl"
    path.write_bytes(path.read_bytes() + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(TaskSetError, match=rf"train/a\.jsonl:4: .*{message}"):
        TaskSet.load(folder)
    fault_of(folder)


def test_a_whole_surrogate_pair_and_a_written_backslash_are_fine():
    assert parse_json(rb'"\ud83d\ude00 \\ud800"') == "\U0001f600 \\ud800"


def read(tmp_path, text):
    path, faults = tmp_path / "taskset.yaml", Faults("set")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    value, _ = read_yaml(path, faults)
    faults.raise_any()
    return value


def test_yaml_words_are_words_and_whole_numbers_numbers(tmp_path):
    words = ["off", "Y", "n", "true", "2020-01-01", "2020-13-45", "010", "1_000", "1:30", "0x1f", "1.5", ".inf", "="]
    text = f"{{no: yes, on: [{', '.join(words)}], 1: -7, a: [~, null]}}"
    assert read(tmp_path, text) == {"no": "yes", "on": words, "1": -7, "a": [None, None]}
    assert read(tmp_path, "a: &x {b: 1}\nc: {<<: *x, d: 2}\n") == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}
    assert read(tmp_path, "") is None


BOMB = "a0: &a0 [x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"taskset\.yaml:3: key 'a' stands twice"),
        ("no: 1\n'no': 3", r"taskset\.yaml:2: key 'no' stands twice"),
        ("name: caf\xe9".encode("latin-1"), "must be UTF-8, line 1 holds byte 0xe9"),
        ('a: "\\ud800"', "half of a surrogate pair"),
        ("a: \0", "is no valid YAML"),
        ("[" * 5000, "too deep"),
        ("{a: " * 5000, "too deep"),
        (BOMB, "at most 200000 values after aliases are written out"),
        ("&a [*a]", "an alias stands within what it names"),
        ("a: [", "is no valid YAML: line 1"),
        ("a:\n\t- b", "is no valid YAML: line 2: found character"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: !!timestamp x", "a value does not fit its !!tag"),
        ("a: " + "9" * 5000, "a number is too long"),
        ("#" * (1 << 21), "may hold at most 1"),
    ],
)
def test_yaml_that_is_none_is_refused(tmp_path, text, message):
    with pytest.raises(TaskSetError, match=message) as caught:
        read(tmp_path, text)
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize("file", ["taskset.yaml", "train/a.jsonl"])
def test_what_is_no_ordinary_file_is_not_waited_for(folder, file, no_file):
    no_file(folder / file)
    assert "no ordinary file" in fault_of(folder)


def test_a_link_to_itself_is_no_file(folder):
    (folder / "taskset.yaml").unlink()
    (folder / "taskset.yaml").symlink_to("taskset.yaml")
    assert "must be a readable file" in fault_of(folder)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "/dev/zero", "\ud800", "a\nb"])
def test_a_name_that_is_no_folder_is_refused_in_one_line(tmp_path, name):
    with pytest.raises(TaskSetError) as caught:
        resolve_taskset(name, tmp_path)
    assert len(str(caught.value)) <= 300 and str(caught.value).isprintable()


def test_lines_are_numbered_as_an_editor_does(tmp_path):
    (tmp_path / "a.jsonl").write_text("1\n\n  \r\n2\n{\n")
    lines = list(read_lines(tmp_path / "a.jsonl"))
    assert lines[:2] == [(1, 1), (4, 2)] and lines[2][0] == 5 and isinstance(lines[2][1], TaskSetError)
