"""Prompts that cannot become tensors are refused by name."""

from dataclasses import replace

import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import processors

from contextlora.backbones.faults import BackboneError
from contextlora.backbones.readable import counts_padding
from contextlora.backbones.scoring import option_scores
from contextlora.tasks.prompts import Prompt


def test_an_image_that_the_processor_refuses_is_named(backbone, tmp_path, monkeypatch):
    Image.new("RGB", (300, 1)).save(tmp_path / "thin.png")
    loaded = backbone("llava")

    def refuse(*_, **__):
        raise ValueError("absolute aspect ratio must be smaller than 200, got 300.0")

    monkeypatch.setattr(type(loaded.processor.image_processor), "preprocess", refuse)
    with pytest.raises(BackboneError, match=r"takes no image .*thin.png of 300 x 1 pixels: absolute aspect ratio"):
        loaded.encode([Prompt("grip", "<image> ? answer :", tmp_path / "thin.png", ("dry", "damp"), 0)])


def test_a_tokenizer_that_ends_every_text_is_refused_with_what_helps(backbone, monkeypatch):
    loaded = backbone("gemma")
    end = processors.TemplateProcessing("$A <unk>", special_tokens=[("<unk>", 0)])
    loaded.tokenizer.backend_tokenizer.post_processor = end
    monkeypatch.setattr("contextlora.backbones.encoding._num_appended", lambda _: 0)  # as where it does not show
    with pytest.raises(BackboneError, match=r"behind it; let its tokenizer_config\.json set add_eos_token=false"):
        loaded.encode([Prompt("grip", "answer :", None, ("dry", "damp"), 0)])


def test_models_that_number_columns_or_mask_by_them_are_told_from_those_that_number_tokens(backbone):
    """GPT-Neo holds a mask of all positions, and BLOOM is given none."""
    assert not any(counts_padding(backbone(kind)) for kind in ("gpt2", "qwen2", "gemma"))
    vocabulary = {"vocab_size": 300, "hidden_size": 16}
    neo = hf.GPTNeoConfig(
        **vocabulary, max_position_embeddings=64, num_layers=1, num_heads=2, attention_types=[[["global"], 1]]
    )
    for config in (neo, hf.BloomConfig(**vocabulary, n_layer=1, n_head=2)):
        assert counts_padding(replace(backbone("gpt2"), model=hf.AutoModelForCausalLM.from_config(config)))


@pytest.mark.parametrize("kind", ["gpt2", "gemma"])
def test_rows_that_fit_alone_fit_together(backbone, kind):
    """Positions count a row's tokens: 64 is the most, and the batch has more columns."""
    loaded = backbone(kind)
    long, wordy = (
        Prompt("grip", " ".join(["lane"] * 60), None, ("dry", "damp"), 0),
        Prompt("grip", "answer :", None, ("dry damp slick", "damp lane grip . , lane"), 0),
    )
    batch = loaded.encode([long, wordy])
    assert batch.inputs["input_ids"].shape[1] + batch.option_ids.shape[2] - 1 > 64
    alone = [option_scores(loaded.model, loaded.encode([prompt])) for prompt in (long, wordy)]
    torch.testing.assert_close(option_scores(loaded.model, batch), torch.cat(alone), atol=1e-5, rtol=1e-5)
