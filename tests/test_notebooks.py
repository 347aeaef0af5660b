"""The notebooks run from the first cell to the last on the runs of the tiny task set."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from contextlora import config as config_module
from contextlora.commands.train import train

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@pytest.fixture
def shown(monkeypatch):
    """What the notebook hands to Jupyter's display functions, which need not be installed."""
    everything = []
    display = ModuleType("IPython.display")
    display.Image = display.Markdown = everything.append
    package = ModuleType("IPython")
    package.__spec__ = importlib.util.spec_from_loader("IPython", None)  # torch looks for it
    package.display, package.version_info = display, (9, 0)  # matplotlib asks for the version
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return everything


@pytest.fixture
def cells():
    """The code cells."""
    notebook = json.loads((NOTEBOOKS / "compare.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_runs_are_compared(make_config, cells, shown, monkeypatch):
    for settings in (("seed=0",), ("seed=1",), ("seed=0", "method=joint")):
        config = make_config("evaluation.max_items=6", "training.steps_per_task=1", *settings)
        train(config)
    monkeypatch.setattr(config_module, "load_config", lambda arguments: config)
    scope = {}
    for cell in cells:
        exec("".join(cell["source"]), scope)
    assert [group.name for group in scope["groups"]] == ["contextlora", "joint"]
    methods, tables, learning, matrix = shown
    assert all(picture.startswith(b"\x89PNG") for picture in (methods, learning, matrix))
    assert "| contextlora - joint | 1 |" in tables


def test_notebooks_are_kept_without_output(cells):
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
