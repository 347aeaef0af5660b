"""What users read where they made a mistake: the rules of `tests.messages`, and messages about overlong input."""

import ast
import json
import re
import shutil
from pathlib import Path

import pytest

from contextlora.cli import main
from contextlora.errors import LONGEST, UserError, cut, known, listed, tail
from contextlora.gear.execution.meeting import in_vain
from tests.messages import ADVICE, SOURCE, recorded_errors, rule_broken

GOOD = (
    "training.batch_size must be at least 1, got 0",
    "unknown key sede; did you mean seed? Known: seed, runs_dir",
    "no finished run in runs; start one with: make train",
    "this machine has none; take auto or cpu",
    "alpha is a number above 0, got 0: set method.alpha",
    "set x has 2 faults:\n  train/a.jsonl:1: options must be a list\n  train/a.jsonl:2: 'id' stands twice; keep one",
)


@pytest.mark.parametrize("message", GOOD)
def test_a_message_that_helps_keeps_the_rules(message):
    assert rule_broken(message) == ""


@pytest.mark.parametrize(
    ("message", "rule"),
    [
        ("set it " + "x" * 300, "too long"),
        ("one line\nset it in another", "more than one line, and no report of faults"),
        ("set x has 2 faults:\n  set a\nset b", "more than one line, and no report of faults"),
        ("set x has 2 faults:\n  a must be b\n  c is d", "no word of what to change"),
        ("set x has 2 faults:\n  a must be b\n  c must be one of", "broken off"),
        ("set \x1b[31mit", "not printable"),
        ("x must be one of:", "broken off"),
        ("x must be in runs/", "broken off"),
        ("x must be a number of at ...", "broken off"),
        ("x must be", ""),  # a sentence's end shows only where it is a little word
        ("x must be the", "broken off"),
        ("", "broken off"),
        ("the task set x cannot be read", "no word of what to change"),  # set and read are no orders here
        ("0F0 is there twice", "no word of what to change"),
        ("same model and graph?", "no word of what to change"),
        ("unknown experiment 'x'; Known: none", "no word of what to change"),
    ],
)
def test_a_message_that_does_not_help_breaks_one(message, rule):
    assert rule_broken(message) == rule


def test_errors_of_the_package_are_recorded_with_their_place_and_those_of_tests_are_not():
    with recorded_errors() as errors:
        UserError("made by a test")
        in_vain(0, 2, [1])
    [(place, message)] = errors
    assert place.startswith("contextlora/gear/execution/meeting.py:") and "Start all of them" in message


def test_errors_of_a_forked_process_are_recorded_too(run_processes):
    with recorded_errors() as errors:
        run_processes(2, _fails)
    assert len(errors) == 2


def _fails():
    in_vain(0, 2, [1])


# ---- every place that raises, whether a test comes there or not


def _user_errors(trees):
    """The names of `UserError` and of all classes that inherit from it."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found, new = set(), {"UserError"}
    while new:
        found |= new
        new = {name for name, above in bases.items() if above & new}
    return found


# What code fills in, where it is advice.
FILLED_IN = {"known(": "known: ", "suggestion(": "did you mean ", "how_to_resume": "; resume", "{error}": "; mend"}


def _written(node):
    """The text of a literal, with code in place of what it fills in."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    code = (part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}" for part in parts)
    text = "".join(code)
    for code, advice in FILLED_IN.items():
        text = text.replace(code, advice)
    return " ".join(re.sub("[{}_]", " ", text).split())


def test_every_message_in_the_source_says_what_to_change():
    trees = {path: ast.parse(path.read_text()) for path in sorted(Path(SOURCE).rglob("*.py"))}
    kinds, silent, met = _user_errors(trees.values()) - {"NotFiniteError"}, [], 0  # which has its own advice
    for path, tree in trees.items():
        for node in ast.walk(tree):
            is_error = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds
            if is_error and isinstance(node.args[0], ast.JoinedStr | ast.Constant):
                met += 1
                if not ADVICE.search(_written(node.args[0])):
                    silent.append(f"{path.relative_to(SOURCE)}:{node.lineno}: {_written(node.args[0])}")
    assert met > 150 and not silent, "\n".join(silent)


# ---- what keeps a message short


def test_a_path_keeps_its_end():
    assert tail("runs/a") == "runs/a"
    assert tail("/x" * 200 + "/config.yaml").endswith("/x/config.yaml") and len(tail("x" * 400)) == 80
    assert tail("a\nb") == r"'a\nb'"


def test_known_names_are_listed_as_far_as_there_is_room_behind_the_nearest():
    names = [f"task_{number:03}" for number in range(1000)]
    assert known("task_9999", names) == f"; did you mean task_999? Known: {listed(names)}"
    assert listed(names).endswith(" and 988 more") and listed(names).count("task") == 12
    assert listed(["x" * 400]) == "x" * 400 and listed([]) == "none"


def test_a_line_that_is_too_long_loses_its_middle_and_no_advice():
    assert cut("a" * LONGEST) == "a" * LONGEST
    words = cut("rule: " + "x" * 10_000 + "; set y")
    assert words.startswith("rule: xxx") and words.endswith("xxx; set y") and len(words) < 100
    line = cut("rule " * 100 + "; set y")
    assert line.startswith("rule rule") and line.endswith("rule ; set y") and len(line) <= LONGEST
    assert str(UserError("a\x1b[31m" + " b" * 1000, [" set c"])) == cut("a\x1b[31m" + " b" * 1000) + "\n set c"
    assert str(UserError("set what is\nnot 'two\nlines'")) == r"set what is\nnot 'two\nlines'"


# ---- overlong input, from the command line to the message


def line_of(capsys, *arguments):
    """The one line that a mistake leaves."""
    assert main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert len(line) <= 300 and line.startswith("contextlora: ") and line.isprintable()
    return line


KEY, PATH = "k" * 500, "/nowhere/" + "/".join(["p" * 97] * 4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["seed=" + "v" * 10_000], ["seed must be a whole number", "vvv"]),
        (["training.learning_rate=" + "v" * 10_000], ["training.learning_rate must be a finite number", "vvv"]),
        (["method.delta=" + "v" * 10_000], ["method.delta must be between 0 and 1, or auto", "vvv"]),
        (["taskset.regime=" + "v" * 10_000], ["taskset.regime must be one of low, full", "vvv"]),
        (["model.dtype=[" + "v, " * 5000 + "]"], ["model.dtype must be one of auto"]),
        (["training.callbacks=" + "v" * 10_000], ["training.callbacks must be a list", "vvv"]),
        (["training.trainer={a: " + "v" * 10_000 + "}", "taskset=nowhere"], ["taskset"]),
        (["method=" + "v" * 10_000], ["unknown method 'vvv", "Known: contextlora, joint"]),
        (["experiment=" + "v" * 10_000], ["unknown experiment 'vvv", "Known: none; add a file to"]),
        (["taskset=" + "v" * 200], ["unknown taskset 'vvv", "Known: iov"]),
        (["model=" + "v" * 200], ["unknown model 'vvv", "Known: "]),
        (["v" * 10_000], ["expected key=value, got 'vvv"]),
        ([KEY + "=1"], ["unknown key kkk", "Known: "]),
        ([f"training.{KEY}=1"], ["unknown key training.kkk", "Known: learning_rate"]),
        ([f"method.{KEY}.{KEY}=1"], ["unknown key method.kkk", "Known: name"]),
        ([f"training.batch_size.{KEY}=1"], ["training.batch_size must be"]),
        (["seed=[" * 500], ["seed=[", "mend it"]),
        (["seed=${" + KEY + "}"], ["seed", "kkk", "another value"]),
        (["runs_dir=${oc.env:" + KEY + "}"], ["runs_dir"]),
        (["--config-dir", PATH], ["no file ...", "ppp/default.yaml", "--config-dir"]),
        (["taskset=" + PATH], ["taskset must be one of iov or a folder", "nowhere"]),
        ([f"taskset={PATH}/{'p' * 300}"], ["taskset", "ppp"]),
        (["taskset.data_dir=/dev/null/" + PATH], ["cannot write task set iov", "set taskset.data_dir"]),
    ],
    ids=lambda value: value[0][:30] if isinstance(value, list) else value,
)
def test_overlong_settings_are_named_in_one_line(settings, said, capsys):
    line = line_of(capsys, "data", *settings)
    assert all(word in line for word in said), line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "--run", PATH], ["ppp is no run folder", "--run FOLDER"]),
        (["resume", "--run", PATH], ["ppp is no run folder", "--run FOLDER"]),
        (["evaluate", "runs_dir=" + PATH], ["no finished run in ...ppp", "make train"]),
        (["resume", "--run", "v" * 10_000], ["vvv is no run folder", "--run FOLDER"]),
        (["plan", "gear.devices=" + PATH + ".yaml"], ["gear.devices names no file: ...ppp", "DEVICES=FILE"]),
        (["plan", "gear.devices=" + "v" * 200], ["unknown devices 'vvv", "Known: "]),
        (["plan", "model=" + PATH], ["config.json of model ...ppp", "give its folder"]),
    ],
)
def test_overlong_paths_are_named_in_one_line(arguments, said, taskset_folder, capsys):
    line = line_of(capsys, *arguments, *([f"taskset={taskset_folder}"] if arguments[0] == "plan" else []))
    assert all(word in line for word in said), line


def test_an_overlong_option_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit):
        main(["data", "--" + "v" * 2000])
    assert max(map(len, capsys.readouterr().err.splitlines())) <= 300


@pytest.fixture
def changed(taskset_folder, tmp_path):
    """(file, changes of its first item) -> a task set's folder with them."""

    def change(file, **changes):
        folder = shutil.copytree(taskset_folder, tmp_path / "changed", dirs_exist_ok=True)
        first, *others = (folder / file).read_text().splitlines(keepends=True)
        (folder / file).write_text(json.dumps(json.loads(first) | changes) + "\n" + "".join(others))
        return folder

    return change


OPTION, NAME, ANSWER = "o" * 2000, "n" * 300, "a" * 5000


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("train/b.jsonl", {"options": [OPTION, OPTION.upper()]}, ["two or more different words", "'ooo"]),
        ("train/b.jsonl", {"options": [OPTION, "red"], "answer": 9}, ["answer must be the index of an option, 0 to 1"]),
        ("train/b.jsonl", {"options": [OPTION, {}]}, ["options must be a list of words"]),
        ("train/c.jsonl", {"scene": NAME, "prerequisites": {}}, ["scene", "nnn", "add an item of"]),
        ("test/b.jsonl", {"scene": "train-1"}, ["train-1"]),
        ("train/b.jsonl", {"id": NAME, "fields": 1}, ["item 'nnn", "fields must map names"]),
        ("train/b.jsonl", {NAME: 1}, ["unknown keys", "nnn", "Known: id"]),
        ("train/b.jsonl", {"answer": ANSWER}, ["answer must be the index of an option", "'aaa"]),
        ("train/c.jsonl", {"prerequisites": {"a": ANSWER, "b": "red"}}, ["'aaa", "a of scene train-0"]),
        ("train/c.jsonl", {"prerequisites": {NAME: ANSWER}}, ["nnn", "no prerequisite of c"]),
        ("train/b.jsonl", {"image": "p" * 400}, ["image ...ppp", "ppp cannot be read"]),
    ],
)
def test_overlong_values_of_items_are_named_with_file_and_line(file, changes, said, changed, model_folder, capsys):
    command = ["train", "--dry-run", f"model={model_folder}"] if "add an item of" in said else ["data"]
    assert main([*command, f"taskset={changed(file, **changes)}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(len(line) <= 300 and line.isprintable() for line in lines)
    assert any(f"{file}:1: " in line and all(word in line for word in said) for line in lines), lines


def test_overlong_options_of_a_model_are_named_with_file_and_line(changed, model_folder, capsys):
    long = changed("train/d.jsonl", options=["red " * 500, "blue"], answer=0)
    line = line_of(capsys, "train", f"taskset={long}", f"model={model_folder}", "taskset.context=none")
    assert "train/d.jsonl:1: a prompt takes " in line and "at most 64; shorten " in line


def test_an_overlong_task_name_is_named_with_file_and_line(changed, capsys):
    folder = changed("train/b.jsonl")
    described = folder / "taskset.yaml"
    described.write_text(described.read_text().replace("\n  b:", f"\n  {NAME}:"))
    assert main(["data", f"taskset={folder}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(len(line) <= 300 for line in lines) and any("nnn" in line for line in lines[1:]), lines
