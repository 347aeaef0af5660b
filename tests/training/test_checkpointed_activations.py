"""Gradient checkpointing: the same training for less memory."""

import pytest
import torch

from contextlora.adapters.config import AdapterError
from contextlora.assembly.build import build_data, build_module
from contextlora.training.memory import estimate_memory


@pytest.mark.parametrize("settings", [(), ("method=mole",), ("method.delta=0.5", "taskset.context=gold")])
def test_repeated_forwards_train_to_the_same_weights(settings, make_config, train, tmp_path):
    """Tasks change their slices from step to step, and dropout its masks: a backward must see those of its forward."""
    settings = ("method.dropout=0.2", "training.steps_per_task=4", *settings)
    plain = train(make_config(*settings), tmp_path / "plain").adapted.state.read()
    found = train(make_config(*settings, "model.gradient_checkpointing=true"), tmp_path / "found").adapted.state.read()
    assert found.keys() == plain.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-4, atol=1e-6)


def test_a_step_needs_less_memory(make_config):
    def step_bytes(*settings):
        config = make_config("training.batch_size=8", *settings)
        return estimate_memory(build_module(config, build_data(config))).training.item_bytes

    assert step_bytes("model.gradient_checkpointing=true") < 0.8 * step_bytes()


def test_a_penalty_on_routers_is_refused(make_config):
    config = make_config("method=mixlora", "model.gradient_checkpointing=true")
    with pytest.raises(AdapterError, match="penalty on its routers has no gradient checkpointing"):
        build_module(config, build_data(config))
