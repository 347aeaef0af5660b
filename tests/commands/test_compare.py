"""`contextlora compare`: what it needs, prints and writes."""

from pathlib import Path

import pytest

from contextlora.commands.compare import compare
from contextlora.commands.train import train
from contextlora.errors import UserError


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
