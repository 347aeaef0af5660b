"""Gradient checkpointing: the same training for less memory."""

import shutil

import pytest
import torch

from contextlora.adapters.config import AdapterError
from contextlora.assembly.build import build_data, build_module
from contextlora.backbones import continuing
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


@pytest.mark.parametrize("packs", [True, False])
def test_options_of_several_tokens_train_to_the_same_weights(
    packs, taskset_folder, make_config, train, tmp_path, monkeypatch
):
    """Packed behind the prompt where a model can do so; else in rows of their own, as no keys and values are kept."""
    if not packs:
        monkeypatch.setattr(continuing, "can_pack", lambda model: False)
    folder = tmp_path / "several"
    shutil.copytree(taskset_folder, folder)
    for path in folder.rglob("*.jsonl"):
        text = path.read_text(encoding="utf-8")
        for word in ("red", "blue", "green"):
            text = text.replace(f'"{word}"', f'"{word} red {word}"')
        path.write_text(text, encoding="utf-8")
    settings = (f"taskset={folder}", "method.dropout=0.0", "training.steps_per_task=4")
    plain = train(make_config(*settings), tmp_path / "plain")
    found = train(make_config(*settings, "model.gradient_checkpointing=true"), tmp_path / "found")
    items = found.data.taskset.items("a", "train")[:2]
    batch = found.data.encode_items("a", items, None)
    assert (bool(batch.num_read), batch.own_rows) == (packs, not packs)
    for name, tensor in found.adapted.state.read().items():
        torch.testing.assert_close(tensor, plain.adapted.state.read()[name], rtol=1e-3, atol=1e-4)


def test_a_step_needs_less_memory(make_config):
    def step_bytes(*settings):
        config = make_config("training.batch_size=8", *settings)
        return estimate_memory(build_module(config, build_data(config))).training.item_bytes

    assert step_bytes("model.gradient_checkpointing=true") < 0.8 * step_bytes()


def test_a_penalty_on_routers_is_refused(make_config):
    config = make_config("method=mixlora", "model.gradient_checkpointing=true")
    with pytest.raises(AdapterError, match="penalty on its routers has no gradient checkpointing"):
        build_module(config, build_data(config))
