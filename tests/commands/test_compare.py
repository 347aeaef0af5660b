"""`contextlora compare`: what it needs, prints and writes."""

import shlex
from pathlib import Path

import pytest

from contextlora.cli import main
from contextlora.commands.compare import compare, print_jobs
from contextlora.commands.train import train
from contextlora.errors import UserError
from contextlora.methods import METHODS


def test_comparing_needs_runs_and_writes_a_table(make_config):
    config = make_config("evaluation.max_items=6")
    with pytest.raises(UserError, match="holds no finished run"):
        compare(config)
    for settings in (("seed=0",), ("seed=1",), ("seed=0", "method=joint")):
        train(make_config("evaluation.max_items=6", "training.steps_per_task=1", *settings))
    compare(config)
    text = (Path(config.runs_dir) / "comparison.md").read_text()
    assert "| contextlora | 2 | 4 |" in text
    assert "| joint | 1 | 4 |" in text
    assert "| contextlora - joint | 1 |" in text
    assert "| majority answer |" in text
    assert (Path(config.runs_dir) / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_jobs_are_the_runs_that_have_not_finished(tiny_settings, capsys):
    settings = [*tiny_settings, "method=joint", "evaluation.max_items=6", "training.steps_per_task=1"]
    assert main(["compare", "--print-jobs", *settings]) == 0
    jobs = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [[text for text in job if text.startswith("seed=")] for job in jobs] == [["seed=0"], ["seed=1"], ["seed=2"]]
    assert main(jobs[1][3:]) == 0
    capsys.readouterr()
    assert main(["compare", "--print-jobs", *settings]) == 0
    assert [shlex.split(line) for line in capsys.readouterr().out.splitlines()] == [jobs[0], jobs[2]]


def test_jobs_are_those_of_every_method_unless_one_is_chosen(make_config, capsys):
    config = make_config()
    print_jobs(config, [f"runs_dir={config.runs_dir}"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(set(lines)) > 3 * len(METHODS)  # some also with right answers in the prompts
    assert {f"method={name}" for name in METHODS} == {text for line in lines for text in shlex.split(line)} & {
        f"method={name}" for name in METHODS
    }
