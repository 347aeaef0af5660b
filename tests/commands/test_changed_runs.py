"""Runs of which something was changed, lost or mixed up behind their back."""

import pytest

from contextlora.commands.compare import compare
from contextlora.commands.evaluate import evaluate
from contextlora.commands.resume import resume
from contextlora.commands.train import train
from contextlora.config import to_yaml
from contextlora.training.checkpoint import CheckpointError

SHORT = ("training.steps_per_task=1", "training.validate_every_steps=1")


def contents(run):
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != "status.json"}


def test_a_resume_that_is_refused_has_written_nothing(make_config):
    run = train(make_config(*SHORT, "method=per_task"))
    # As if its checkpoint were another run's, from which the file could be written again.
    run.config_file.write_text(to_yaml(make_config(*SHORT, "method=per_task", "seed=1")))
    (run.path / "checkpoints" / "stage-1.safetensors").unlink()
    (run.path / "figures" / "plan.png").unlink()
    run._set_state("interrupted")
    before = contents(run)
    with pytest.raises(CheckpointError, match="with the setting seed that it was made with: it has 0, here it is 1"):
        resume(run)
    assert contents(run) == before


def test_results_that_are_lost_are_measured_again(make_config, capsys):
    config = make_config(*SHORT)
    run = train(config)
    expected = run.results
    run.results_file.write_text("")
    evaluate(make_config(*SHORT, "evaluation.split=validation"), run)
    assert run.results_file.read_text() == ""  # by other settings
    evaluate(config, run)
    assert "results.json could not be read: written again" in capsys.readouterr().out
    found = run.results
    lost = {"train_seconds", "total_seconds", "peak_memory_bytes"}
    assert found.keys() == expected.keys() - lost
    assert {key for key in found if found[key] != expected[key]} <= {"evaluation_seconds"}
    compare(config)
    assert "left out" not in capsys.readouterr().out
