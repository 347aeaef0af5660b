"""A run that is interrupted anywhere and resumed ends with the very bits of one that was not."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from contextlora.signals import Terminated, ending_in_order
from contextlora.training.callbacks import LAST
from contextlora.training.checkpoint import AtomicCheckpointIO, load_checkpoint


@pytest.fixture
def kept_checkpoints(tmp_path, monkeypatch):
    """Folders that look as a kill right after each checkpoint of the first training would leave them."""
    kept: list[Path] = []
    save = AtomicCheckpointIO.save_checkpoint

    def save_and_keep(self, checkpoint, path, storage_options=None):
        save(self, checkpoint, path, storage_options)
        kept.append(tmp_path / f"after-{len(kept)}")
        shutil.copytree(Path(path).parent, kept[-1])

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save_and_keep)
    return kept


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize(
    "settings",
    [
        ("method=contextlora", "training.steps_per_task=3"),
        ("method=contextlora", "taskset.context=gold", "training.patience=1", "method.variant=paper"),
        ("method=joint",),
        ("method.delta=auto", "method.delta_policy=gradient"),
        ("method.delta=auto", "method.delta_policy=validation", "training.steps_per_task=7"),
        ("method.delta=auto", "method.delta_policy=sensitivity", "method.edge_delta={a->c: 0.5}"),
    ],
    ids=[
        "predicted",
        "gold with early stopping",
        "joint, whose snapshots change within the stage",
        "delta by gradients",
        "delta by validation losses, with notes",
        "delta by sensitivity",
    ],
)
def test_resumes_bit_identically_from_every_checkpoint(settings, make_config, train, tmp_path, kept_checkpoints):
    config = make_config(*settings)
    whole = train(config, tmp_path / "whole")
    expected, history = whole.state_dict(), whole.progress.history
    folders = list(kept_checkpoints)
    stages = [row["stage"] for row in history]
    assert len(folders) == len(stages)
    assert len(set(stages)) == len(whole.plan.stages)
    for folder in folders:
        resumed = train(config, folder)
        assert_same_weights(resumed.state_dict(), expected)
        assert resumed.progress.history == history
        assert (folder / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
        for stage in range(len(whole.plan.stages)):
            name = f"stage-{stage + 1}.safetensors"
            assert_same_weights(load_file(folder / name), load_file(tmp_path / "whole" / name))


def test_moments_that_are_not_finite_give_way_to_the_checkpoint_before(
    make_config, train, tmp_path, kept_checkpoints, capsys
):
    config = make_config()
    expected = train(config, tmp_path / "whole").state_dict()
    found = [(folder / LAST, load_checkpoint(folder / LAST)) for folder in kept_checkpoints[1:]]
    # Within a stage: a new one begins without moments.
    last, checkpoint = next(one for one in found if one[1]["optimizer_states"][0]["state"])
    moments = checkpoint["optimizer_states"][0]["state"]
    moments[max(moments)]["exp_avg"].view(-1)[-1] = torch.nan
    AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "spoilt" / LAST)
    shutil.copy(tmp_path / "spoilt" / LAST, last)
    assert_same_weights(train(config, last.parent).state_dict(), expected)
    assert f"{LAST} is damaged: going on from the checkpoint before" in capsys.readouterr().out


def test_a_half_written_checkpoint_is_ignored(make_config, train, tmp_path, kept_checkpoints):
    config = make_config()
    expected = train(config, tmp_path / "whole").state_dict()
    folder = kept_checkpoints[2]
    (folder / f"{LAST}.tmp").write_bytes(b"half")
    assert_same_weights(train(config, folder).state_dict(), expected)


class SignalAt(Callback):
    """Sends this process SIGTERM while a step computes, as another program might."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    "settings",
    [
        ("training.steps_per_task=3", "training.validate_every_steps=3"),
        ("method=joint", "training.steps_per_task=2", "taskset.context=predicted"),
        ("method=mole", "training.steps_per_task=2", "training.validate_every_steps=2", "method.dropout=0.5"),
        ("method.delta=auto", "method.delta_policy=gradient", "training.steps_per_task=3"),
    ],
    ids=["predicted", "joint", "a router and dropout", "delta by gradients"],
)
def test_sigterm_saves_the_step_and_resumes_bit_identically(settings, make_config, train, tmp_path):
    config = make_config(*settings)
    whole = train(config, tmp_path / "whole")
    ends = {row["step"] for row in whole.progress.history}
    assert len(ends) < whole.progress.total_steps
    # An interval is broken off at each of its steps in turn, and goes on each time.
    for step in range(whole.progress.total_steps):
        with ending_in_order(), pytest.raises(Terminated):
            train(config, tmp_path / "broken", callbacks=[SignalAt(step)])
        if step + 1 not in ends:
            assert load_checkpoint(tmp_path / "broken" / LAST)["global_step"] == step + 1
    resumed = train(config, tmp_path / "broken")
    assert_same_weights(resumed.state_dict(), whole.state_dict())
    assert resumed.progress.history == whole.progress.history
    assert (tmp_path / "broken" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
