"""What the data check says of a set of the user's own, and when it fails."""

import json

import pytest

from contextlora.commands import data_check as command
from contextlora.commands.data_check import data_check
from contextlora.config import load_config
from contextlora.errors import UserError
from contextlora.tasks.checks import Check
from contextlora.tasks.task import SPLITS


@pytest.fixture
def described(taskset_folder, capsys):
    """(settings of the check) -> its lines, of the tiny set or of another one."""

    def check(folder=taskset_folder, **settings):
        data_check(load_config([f"taskset={folder}"]), **settings)
        return capsys.readouterr().out.splitlines()

    return check


@pytest.fixture
def apart(tmp_path):
    """(whether b's items give right answers of a) -> a set whose tasks a and b share no scene."""

    def write(gold):
        (tmp_path / "taskset.yaml").write_text(
            "tasks:\n  a: {num_options: 2}\n  b: {prerequisites: [a], num_options: 2}\n"
        )
        for split in SPLITS:
            (tmp_path / split).mkdir()
            for task in "ab":
                given = {"prerequisites": {"a": "x"}} if gold and task == "b" else {}
                rows = [
                    {"id": n, "scene": f"{split}{task}{n}", "question": f"{split} {n}", "options": ["x", "y"]}
                    | {"answer": n % 2, **given}
                    for n in range(4)
                ]
                (tmp_path / split / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    return write


def test_findings_in_a_set_of_the_user_s_own_are_advice(described):
    lines = described()
    assert any("copies across splits" in line and "look" in line for line in lines)  # sixteen scenes in all
    assert sum("part of the test is known" in line for line in lines) == 1
    assert "probes break their limit" in lines[-1] and "--strict" in lines[-1]
    with pytest.raises(UserError, match="probes break their limit; edges that could not be probed: 0, see above"):
        described(strict=True)


def test_what_could_not_be_probed_is_said(described, apart):
    lines = described(apart(gold=False))
    assert any(line.startswith("a -> b: no item of b shares its scene with one of a, and none gives") for line in lines)
    assert not any("prerequisite a" in line or "gold answers" in line for line in lines)
    assert "edges that could not be probed: 1; advice" in lines[-1]


def test_right_answers_without_shared_scenes_are_probed_alone(described, apart):
    lines = described(apart(gold=True))
    assert any(
        line.endswith("only right answers could be probed, a model has none of its own to give") for line in lines
    )
    assert any("prerequisite a" in line for line in lines)


def test_a_shipped_set_must_keep_every_limit(monkeypatch, tmp_path):
    settings = load_config(["taskset=iov", f"taskset.data_dir={tmp_path}"])
    monkeypatch.setattr(command, "check_taskset", lambda taskset: [Check("route", "answer position", 0.9, 0.25, 0.35)])
    with pytest.raises(UserError, match="1 of 1 probes break their limit"):
        data_check(settings)
