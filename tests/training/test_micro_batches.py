"""Gradient accumulation: the parts of a batch give the step that the whole batch gives."""

import pytest
import torch

from contextlora.assembly.placement import num_processes
from contextlora.errors import ConfigError


@pytest.mark.parametrize("method", ["contextlora", "o_lora"])
def test_steps_in_parts_train_to_the_weights_and_losses_of_whole_steps(method, make_config, train, tmp_path):
    """Parts of 3, 3 and 2 items; dropout's masks are those of the whole batch."""
    settings = (f"method={method}", "method.dropout=0.2", "training.batch_size=8", "taskset.context=gold")
    whole = train(make_config(*settings), tmp_path / "whole")
    parts = train(make_config(*settings, "training.micro_batch_size=3"), tmp_path / "parts")
    expected = whole.adapted.state.read()
    found = parts.adapted.state.read()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(parts.progress.history, whole.progress.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)


def test_the_parts_of_a_batch_are_its_rows_in_order(make_config, train, tmp_path, monkeypatch):
    from contextlora.training.module import ContextLoraModule

    seen = []
    step_loss = ContextLoraModule.step_loss

    def spy(self, batch, scores=None):
        seen.append((batch.rows, batch.batch_size))
        return step_loss(self, batch, scores)

    monkeypatch.setattr(ContextLoraModule, "step_loss", spy)
    train(make_config("training.batch_size=8", "training.micro_batch_size=3", "training.steps_per_task=1"), tmp_path)
    assert seen[:3] == [(range(3), 8), (range(3, 6), 8), (range(6, 8), 8)]
    assert len(seen) == 3 * 4


def test_several_devices_cut_batches_themselves(make_config):
    config = make_config("training.micro_batch_size=3", "training.strategy=contextgear", "training.devices=2")
    with pytest.raises(ConfigError, match=r"micro_batch_size is for one device.*got 3 with 2 devices"):
        num_processes(config)
