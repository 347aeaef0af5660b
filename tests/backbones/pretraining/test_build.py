"""Building a backbone: what is saved, and that nothing half-written is left."""

import json

import pytest
from transformers import AutoModelForImageTextToText

from contextlora.backbones.pretraining import build
from contextlora.backbones.pretraining.pretrain import PretrainConfig


@pytest.fixture
def config(monkeypatch):
    original = build.pretrain
    monkeypatch.setattr(build, "pretrain", lambda c: original(c, num_layers=2, compile_model=False))
    monkeypatch.setattr(build, "skill_test", lambda model, split: {"name": {"accuracy": 0.5, "n": 4}})
    return PretrainConfig(seed=3, num_steps=2, num_image_rows=1, num_text_rows=2, warmup_steps=1)


def test_a_build_saves_a_whole_checkpoint_with_its_card(config, tmp_path):
    steps = []
    card = build.build_backbone(tmp_path / "new" / "backbone", config, lambda step, loss: steps.append(step))
    assert steps == [1, 2]
    assert json.loads((tmp_path / "new" / "backbone" / "skills.json").read_text()) == json.loads(json.dumps(card))
    assert card["config"]["seed"] == 3 and card["skills"]["test"]["name"]["n"] == 4
    assert (
        AutoModelForImageTextToText.from_pretrained(tmp_path / "new" / "backbone").num_parameters()
        == card["parameters"]
    )


def test_an_interrupted_build_leaves_the_old_checkpoint(config, tmp_path):
    folder = tmp_path / "backbone"
    build.build_backbone(folder, config, lambda step, loss: None)
    before = (folder / "model.safetensors").read_bytes()

    def interrupt(step, loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.build_backbone(folder, config, interrupt)
    assert (folder / "model.safetensors").read_bytes() == before


def test_the_same_seed_builds_the_same_weights(config, tmp_path):
    for name in ("a", "b"):
        build.build_backbone(tmp_path / name, config, lambda step, loss: None)
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b
