"""8- and 4-bit bases train and export; what is missing is named."""

import shutil

import pytest
import torch
import transformers as hf

from contextlora.backbones import load, quantization
from contextlora.backbones.faults import BackboneError

BITS = ("8bit", "4bit")


@pytest.fixture
def wide_model_folder(model_folder, tmp_path):
    """Wide enough for the kernels of bitsandbytes."""
    folder = tmp_path / "wide"
    shutil.copytree(model_folder, folder)
    config = hf.AutoConfig.from_pretrained(model_folder)
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 64 // config.num_attention_heads
    torch.manual_seed(0)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")  # bitsandbytes tells of its casts
@pytest.mark.parametrize("bits", BITS)
def test_a_quantised_base_trains_and_scores_nearly_as_the_whole_one(
    bits, make_config, wide_model_folder, train, tmp_path
):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (pip install -e '.[quantization]')")
    settings = (f"model={wide_model_folder}", "taskset.context=gold", "training.steps_per_task=20")
    module = train(make_config(*settings, f"model.quantization={bits}"), tmp_path / bits)
    whole = train(make_config(*settings), tmp_path / "whole")
    layer = next(iter(module.adapted.layers().values())).base_layer
    assert type(layer).__module__.startswith("bitsandbytes")
    assert layer.weight.dtype in (torch.int8, torch.uint8)
    found, expected = (one.evaluator.predict("a", "test", "none").scores for one in (module, whole))
    assert (found - expected).abs().mean() < 0.5
    first_stage = [row["train_loss"] for row in module.progress.history if row["stage"] == 0]
    assert first_stage[-1] < first_stage[0]


def test_an_unknown_number_of_bits_and_a_missing_library_are_named(model_folder, monkeypatch):
    with pytest.raises(BackboneError, match="quantization must be none, 8bit or 4bit, got '3bit'"):
        load.load_backbone(str(model_folder), quantization="3bit")
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(BackboneError, match=r"quantization=4bit needs bitsandbytes: .*\[quantization\]"):
        load.load_backbone(str(model_folder), quantization="4bit")
