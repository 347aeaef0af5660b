"""The Makefile: targets, variables that become arguments as they are, and values that no shell gets to read."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from contextlora.config import load_config

ROOT = Path(__file__).parents[1]
# Of a `make test` that runs these tests.
OWN = re.compile("MAKE|MFLAGS|TASKSET|METHOD|MODEL|DELTA|SEED|DEVICES|STRATEGY|RUN$|ARGS|KILLS|PROCESSOR|PYTHON$")
NASTY = ["a b", "'", '"', "\\", "#x", "$HOME", "$$HOME", "*", "é", "a\nb", "a=b", "${x", "$(error x)", "%"]
CODE = ["$(shell touch ran)", "$(touch ran)", "`touch ran`", "; touch ran", "&& touch ran", "'; touch ran; '"]


def make(*arguments, **variables):
    environment = {key: value for key, value in os.environ.items() if not OWN.match(key)} | variables
    command = ["make", "--no-print-directory", "-C", str(ROOT), "-o", "setup", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def called(tmp_path):
    """(target, variables) -> the arguments of Python, of which there is a stand-in that only shows them."""
    (tmp_path / "show.py").write_text("import json, sys; print(json.dumps(sys.argv[1:]))")

    def call(target, *variables, **environment):
        given = [f"PY={sys.executable} {tmp_path / 'show.py'}", *variables]
        ended = make(target, *given, **environment)
        assert (ended.returncode, ended.stderr) == (0, "")
        (line,) = ended.stdout.splitlines()
        return json.loads(line)

    return call


def test_make_alone_lists_every_target():
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert [line.split()[1] for line in make().stdout.splitlines() if line.startswith("make ")] == targets


def test_variables_become_settings(called):
    given = [
        "TASKSET=iov",
        "METHOD=contextlora",
        "MODEL=../m",
        "DELTA=0.5",
        "SEED=3",
        "DEVICES=2",
        "STRATEGY=contextgear",
    ]
    words = called("train", *given)
    assert words[:4] == ["with_args.py", "-m", "contextlora", "train"]
    config = load_config(words[4:])
    names = config.taskset.name, config.method.name, config.model.name
    assert (*names, config.seed) == ("iov", "contextlora", "../m", 3)
    assert (config.method.delta, config.training.devices, config.training.strategy) == (0.5, 2, "contextgear")


def test_variables_that_are_not_given_or_empty_add_nothing(called):
    assert called("train", "TASKSET=")[1:] == ["-m", "contextlora", "train"]
    assert called("evaluate")[1:] == ["-m", "contextlora", "evaluate"]


def test_compare_prints_its_jobs(called):
    words = ["with_args.py", "-m", "contextlora", "compare", "--print-jobs", "taskset=iov"]
    assert called("compare", "PRINT_JOBS=1", "TASKSET=iov") == words


def test_export_merges(called):
    assert called("export", "MERGE=1", "RUN=a b")[3:] == ["export", "--merge", "--run", "a b"]


def test_plan_takes_a_device_catalogue(called):
    assert called("plan", "DEVICES=my devices.yaml")[4:] == ["gear.devices=my devices.yaml"]


def test_the_run_is_named(called):
    assert called("export", "RUN=runs/latest")[4:] == ["--run", "runs/latest"]
    assert called("resume", "RUN=a b", "DEVICES=2")[4:] == ["--run", "a b", "--devices", "2"]


@pytest.mark.parametrize("value", [*NASTY, *CODE])
def test_values_are_taken_as_they_are(called, value):
    try:
        assert called("train", f"TASKSET={value}", f"OTHER={value}")[4:] == [f"taskset={value}"]
        assert called("resume", DEVICES=value)[4:] == ["--devices", value]
    finally:
        assert not [path for path in ROOT.glob("ran") if not path.unlink()]


@pytest.mark.parametrize("target", ["test", "test-kills", "soak", "fuzz", "help", "bench-gear"])
@pytest.mark.parametrize("value", CODE)
def test_no_target_runs_what_is_in_a_variable(tmp_path, target, value):
    names = ("ARGS", "PROCESSOR", "KILLS", "SOAK", "FUZZ", "KIND", "SEED", "PYTHON", "RUN", "STRATEGY")
    make(target, "PY=true", *(f"{name}={value}" for name in names))
    assert not [path for path in ROOT.glob("ran") if not path.unlink()]


@pytest.mark.parametrize("name", ["SETTINGS", "RUN_OPTION", "WITH_ARGS", "CONTEXTLORA", "DEVICES_KEY", "STAMP"])
def test_what_the_makefile_puts_together_is_no_variable(called, name):
    assert called("plan", f"{name}=; touch ran", "TASKSET=iov") == called("plan", "TASKSET=iov")


def test_the_python_of_the_setup_is_a_path_as_it_is(tmp_path):
    (tmp_path / "my python").symlink_to(sys.executable)
    setup = [f"VENV={tmp_path}", "PY=true", "PIP=true", f"{tmp_path}/.ready"]
    assert "Setting up" in make(*setup, f"PYTHON={tmp_path / 'my python'}").stdout
    for value in CODE:
        (tmp_path / ".ready").unlink(missing_ok=True)
        make(*setup, f"PYTHON={value}")
        assert not [path for path in ROOT.glob("ran") if not path.unlink()]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("a.b=1 c=d", ["a.b=1", "c=d"]),
        ("'method.edge_delta={grip->route: 0.5}'", ["method.edge_delta={grip->route: 0.5}"]),
        ("'a b' \"c'd\"", ["a b", "c'd"]),
        ("a=1; touch ran", ["a=1;", "touch", "ran"]),
        ("a=$HOME $(touch ran) * > x", ["a=$HOME", "$(touch", "ran)", "*", ">", "x"]),
        ("", []),
    ],
)
def test_args_are_split_into_words_and_nothing_else(args, words):
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    command = [sys.executable, str(ROOT / "with_args.py"), "-c", code, "first"]
    ended = subprocess.run(command, env={"ARGS": args}, capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout) == ["first", *words]


def test_a_quote_that_does_not_end_is_named():
    command = [sys.executable, str(ROOT / "with_args.py"), "-c", ""]
    ended = subprocess.run(command, env={"ARGS": "it's"}, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "it's" in ended.stderr
