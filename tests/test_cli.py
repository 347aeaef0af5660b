"""The command line: which command is called with what, and exit codes."""

import errno
import os
import re
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import pytest
import torch

from contextlora.cli import COMMANDS, main
from contextlora.config import RunConfig, describe_settings, load_config, to_yaml
from contextlora.errors import UserError
from contextlora.methods import METHODS
from contextlora.methods.joint import Joint
from contextlora.runs import RunFolder
from contextlora.settings import MethodSettings, setting
from contextlora.signals import Terminated

ROOT = Path(__file__).parents[1]


@pytest.fixture
def calls(monkeypatch):
    """Stands in for the commands; gives the list of calls made."""
    made = []
    for name in (command.replace("-", "_") for command in COMMANDS):
        module = ModuleType(f"contextlora.commands.{name}")
        setattr(module, name, lambda *args, _name=name, **kwargs: made.append((_name, args, kwargs)))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


def fail_with(error, monkeypatch):
    def train(config, dry_run):
        raise error

    monkeypatch.setattr(sys.modules["contextlora.commands.train"], "train", train)
    return main(["train"])


def test_settings_may_stand_on_both_sides_of_an_option(calls):
    assert main(["train", "method=joint", "--dry-run", "seed=3"]) == 0
    assert calls == [("train", (load_config(["method=joint", "seed=3"]),), {"dry_run": True})]


def test_only_yes_lets_clean_runs_remove(calls):
    assert main(["clean-runs", "runs_dir=x"]) == main(["clean-runs", "--yes"]) == 0
    assert [options for _, _, options in calls] == [{"yes": False}, {"yes": True}]
    assert calls[0][1][0].runs_dir == "x"


def test_export_merges_where_it_is_asked_to(calls, tmp_path):
    make_run(tmp_path, f"runs_dir={tmp_path}")
    run = ["--run", str(next(tmp_path.glob("iov/joint/*")))]
    assert main(["export", *run]) == main(["export", "--merge", *run]) == 0
    assert [options for _, _, options in calls] == [{"merge": False}, {"merge": True}]


def test_stats_are_shown_where_they_are_asked_for(calls):
    assert main(["data", "taskset=iov"]) == main(["data", "--stats", "taskset=iov"]) == 0
    assert [options for _, _, options in calls] == [{"stats": False}, {"stats": True}]


@pytest.mark.parametrize("command", ["compare", "plan", "backbone", "bench"])
def test_a_command_without_a_run_gets_the_configuration(calls, command):
    assert main([command, "taskset.seed=5"]) == 0
    assert calls == [(command.replace("-", "_"), (load_config(["taskset.seed=5"]),), {})]


def test_the_data_check_is_strict_where_it_is_told_so(calls):
    assert main(["data-check", "--strict", "taskset.seed=5"]) == main(["data-check"]) == 0
    assert calls[0] == ("data_check", (load_config(["taskset.seed=5"]),), {"strict": True})
    assert calls[1][2] == {"strict": False}


def make_run(runs_dir, *settings):
    config = to_yaml(load_config(settings))
    return RunFolder.create(runs_dir, "iov", "joint", seed=0, config=config)


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_finished_run_brings_its_own_settings(calls, tmp_path, command):
    make_run(tmp_path, "seed=9", "method=joint").finish({})
    newest = make_run(tmp_path, "seed=8", "method=joint")
    newest.finish({})
    assert main([command, f"runs_dir={tmp_path}", "evaluation.split=validation"]) == 0
    [(name, (config, run), _)] = calls
    assert (name, run.path) == (command, newest.path)
    assert (config.seed, config.method.name, config.evaluation.split) == (8, "joint", "validation")


def test_resume_takes_the_newest_unfinished_run_or_the_named_one(calls, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["resume"]) == 2
    assert "no unfinished run in runs" in capsys.readouterr().err
    run = make_run("runs")
    assert main(["resume"]) == 2  # this process works on it
    (run.path / "status.json").unlink()
    assert main(["resume"]) == 0
    assert main(["resume", "--run", str(run.path)]) == 0
    assert [(name, args[0].path.resolve()) for name, args, _ in calls] == [("resume", run.path.resolve())] * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "method.detla=1"], "method.detla"),
        (["train", "taskset=nowhere"], "nowhere"),
        (["evaluate", "--run", "nowhere"], "nowhere"),
        (["train", "--config-dir", "nowhere"], "nowhere"),
        (["train", "seed=1", "training.trainer={a: [}", "runs_dir=a"], "cannot read 'training.trainer={a: [}': "),
        (["train", "--config-dir", "two\nlines"], r"two\nlines/default.yaml"),
    ],
)
def test_a_mistake_of_the_user_is_one_line_and_exit_code_2(calls, capsys, arguments, said):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert calls == []


@pytest.mark.parametrize("arguments", [["train", "--fast"], ["resume", "seed=1"], ["trian"], []])
def test_an_unknown_word_is_refused_with_exit_code_2(calls, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert (arguments[-1] if arguments else "COMMAND") in capsys.readouterr().err


def test_debug_shows_the_traceback(calls, capsys):
    assert main(["train", "--debug", "method.rank=0"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_says_how_to_resume_and_ends_with_130(calls, monkeypatch, capsys):
    interrupt = KeyboardInterrupt()
    interrupt.add_note("continue it with: make resume RUN=runs/iov/joint/1")
    assert fail_with(interrupt, monkeypatch) == 130
    assert capsys.readouterr().err == "contextlora: interrupted\ncontinue it with: make resume RUN=runs/iov/joint/1\n"


def test_a_signal_while_the_arguments_are_read_ends_in_order_too(monkeypatch, capsys):
    for error, code, said in ((KeyboardInterrupt(), 130, "interrupted"), (Terminated(15), 143, "ended by SIGTERM")):
        monkeypatch.setattr("contextlora.cli.describe_settings", Mock(side_effect=error))
        assert main(["train", "--dry-run"]) == code
        assert capsys.readouterr().err == f"contextlora: {said}\n"


def disk_full_behind(error):
    error.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return error


@pytest.mark.parametrize(
    ("error", "code", "said", "traceback"),
    [
        (UserError("mend this"), 2, "mend this", False),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, "the disk, a quota", False),
        (disk_full_behind(RuntimeError("writing failed")), 1, "the disk, a quota", False),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), 1, "make room", False),
        (RuntimeError(f"SafetensorError: {os.strerror(errno.EFBIG)} (os error 27)"), 1, "make room", False),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 2, "runs cannot be read or written (Perm", False),
        (IsADirectoryError(errno.EISDIR, "Is a folder", "new", None, "old"), 2, "old cannot be read or written", False),
        (OSError(errno.EIO, "Input/output error", "runs"), 1, "Input/output error: 'runs'", False),
        (MemoryError(), 2, "the memory is full; set training.micro_batch_size=auto", False),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, "the memory is full", False),
        (torch.OutOfMemoryError("CUDA out of memory."), 2, "the memory is full", False),
        (ZeroDivisionError("oops"), 1, "a bug in contextlora", True),
    ],
)
def test_errors_end_with_their_exit_code(calls, monkeypatch, capsys, error, code, said, traceback):
    assert fail_with(error, monkeypatch) == code
    shown = capsys.readouterr().err
    assert said in shown
    assert ("Traceback" in shown) == traceback


SLOW = {"torch", "lightning", "wandb", "peft", "transformers", "networkx", "matplotlib", "numpy"}


def answer_without_slow_imports(*arguments):
    """The program in a process of its own: what it writes, and its exit code."""
    code = "import sys\nfrom contextlora.cli import main\ntry:\n sys.exit(main())\nfinally:\n"
    code += f" assert not {SLOW} & set(sys.modules), {SLOW} & set(sys.modules)"
    command = [sys.executable, "-c", code, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "AssertionError" not in ended.stderr, ended.stderr
    return ended.stdout + ended.stderr, ended.returncode


def test_help_and_a_mistake_import_nothing_slow():
    for arguments in (["train", "method.rank=0"], ["plan", "training.learning_rate=1e39"], ["train", "method=x"]):
        text, exit_code = answer_without_slow_imports(*arguments)
        assert (text.count("\n"), exit_code) == (1, 2), text


def test_help_lists_every_command_and_every_setting():
    (general, _), (train, _) = answer_without_slow_imports("--help"), answer_without_slow_imports("train", "--help")
    assert all(re.search(rf"^    {command}\b", general, re.MULTILINE) for command in COMMANDS)
    lines = [" ".join(line.split()) for line in train.splitlines()]
    for key, default, _ in describe_settings(RunConfig):
        start = f"{key[:-1]}: " if key.endswith(".") else f"{key} {default} "
        assert any(line.startswith(start) for line in lines), start
    for method in METHODS.values():  # with its own defaults
        for entry in fields(method.Settings):
            default = getattr(method.Settings(), entry.name)
            if entry.name != "name" and isinstance(default, int | float | str):
                assert any(line.startswith(f"method.{entry.name} {default} ") for line in lines), entry.name


def test_a_method_that_changes_a_default_of_all_shows_its_own(monkeypatch):
    @dataclass
    class Settings(MethodSettings):
        """Drops a lot."""

        name: str = setting("wet", "training method")
        dropout: float = setting(0.5, "dropout probability on the LoRA input")

    monkeypatch.setitem(METHODS, "wet", type("Wet", (Joint,), {"Settings": Settings}))
    rows = list(describe_settings(RunConfig))
    start = rows.index(("method (wet).", "Drops a lot.", ""))
    assert rows[start + 1][:2] == ("method.dropout", "0.5")
    assert rows[start + 2][0] == "model."  # rank and alpha are as in every method
