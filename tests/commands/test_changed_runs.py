"""Runs of which something was changed, lost or mixed up behind their back."""

import pytest

from contextlora.commands.resume import resume
from contextlora.commands.train import train
from contextlora.training.checkpoint import LAST, CheckpointError

SHORT = ("training.steps_per_task=1", "training.validate_every_steps=1")


def contents(run):
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != "status.json"}


def test_a_resume_that_is_refused_has_written_nothing(make_config):
    foreign, run = (train(make_config(*SHORT, "method=per_task", f"seed={seed}")) for seed in (0, 1))
    checkpoints = run.path / "checkpoints"
    (foreign.path / "checkpoints" / LAST).replace(checkpoints / LAST)
    (checkpoints / "stage-1.safetensors").unlink()
    (run.path / "figures" / "plan.png").unlink()
    run._set_state("interrupted")
    before = contents(run)
    with pytest.raises(CheckpointError, match="with the setting seed that it was made with: it has 0, here it is 1"):
        resume(run)
    assert contents(run) == before
