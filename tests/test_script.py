"""The script of docs/: few lines, its own graph and data, a plain Trainer."""

import os
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "script.py"


def test_it_trains_and_prints_accuracies(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(SCRIPT)]
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    accuracies = literal_eval(shown.splitlines()[-1])
    assert list(accuracies) == ["first", "same"]
    assert all(accuracy > 0.9 for accuracy in accuracies.values())  # chance: a third and a half
    assert list(tmp_path.iterdir()) == []


def test_it_is_short_and_the_documentation_names_it():
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 25
    assert "ContextLoraModule" in text and "TaskSetDataModule" in text and "lightning.Trainer" in text
    assert "docs/script.py" in (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
